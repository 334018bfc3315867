"""What to buy for a load and its service levels, and how far a fleet carries."""
