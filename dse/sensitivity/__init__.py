"""Sensitivity metrics: penalty of every unit at every precision."""
