"""The test suite; ``python -m tests`` runs every check that CI runs."""
