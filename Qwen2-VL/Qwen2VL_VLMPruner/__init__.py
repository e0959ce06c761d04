"""Room for `VLMPruner(Qwen2VLModel)`: the Qwen2-VL decoder is not built yet.

Importing this package works and gives nothing. What works today is LLaVA-1.5 and LLaVA-1.6; see the README.
"""
