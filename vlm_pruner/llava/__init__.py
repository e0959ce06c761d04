"""LLaVA-1.5 and 1.6: checkpoints in the original layout, prompts, image processing and generation."""
