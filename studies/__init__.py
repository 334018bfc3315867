"""What a person writes to describe an experiment, and the runner."""
