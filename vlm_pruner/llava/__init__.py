"""LLaVA: checkpoints in the original layout, prompts, image processing, generation and evaluation."""
