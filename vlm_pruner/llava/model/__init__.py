"""The LLaVA architecture on transformers' Llama and CLIP, and its loader."""
