"""Design-space exploration of mixed precision for transformer inference."""
