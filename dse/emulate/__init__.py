"""Emulated quantized forward passes of real models."""
