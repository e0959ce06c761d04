"""What `vlm_pruner.selection` offers, on the GPU. Import it only where Triton is installed."""

from vlm_pruner.kernels.aggregation import fold
from vlm_pruner.kernels.expansion import expand, expand_images
from vlm_pruner.kernels.pivots import choose_pivots
from vlm_pruner.kernels.screening import screen_channels

__all__ = ["choose_pivots", "expand", "expand_images", "fold", "screen_channels"]
