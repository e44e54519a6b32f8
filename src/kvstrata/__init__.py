"""kvstrata: one tiered, hybrid-aware KV cache for a fleet of vLLM engines."""

__version__ = "0.1.0"
