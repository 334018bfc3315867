"""Bits, partition and micro-batches together, solved exactly with OR-Tools."""
