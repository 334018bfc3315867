"""Transformers as operator graphs whose sizes are functions of (batch, query length, context length)."""
