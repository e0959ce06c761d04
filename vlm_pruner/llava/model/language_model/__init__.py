"""Decoders: Llama with pruning, and LLaVA on top of it."""
