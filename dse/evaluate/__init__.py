"""Quality and cost of a plan: lowering to physical work, cost tables, emulated forward passes."""
