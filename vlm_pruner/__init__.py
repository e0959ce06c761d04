"""VLM-Pruner: keep a small, spatially coherent subset of a picture's tokens inside a vision-language model."""

from vlm_pruner import methods
from vlm_pruner.layout import TokenLayout
from vlm_pruner.methods.centrifugal import CentrifugalPruner
from vlm_pruner.methods.random import RandomPruner
from vlm_pruner.pruning import prune

__version__ = "0.1.0"
__all__ = ["CentrifugalPruner", "RandomPruner", "TokenLayout", "__version__", "methods", "prune"]
