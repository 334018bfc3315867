"""A finished study as one self-contained HTML file."""
