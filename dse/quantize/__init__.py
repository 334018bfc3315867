"""Quantizers: from full-precision weights to the values a format can hold."""
