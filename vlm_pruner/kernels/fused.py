"""`vlm_pruner.selection` on the GPU, for several images of equal size at once (the first dimension).

Import it only if Triton is installed.
"""

from vlm_pruner.kernels.aggregation import fold
from vlm_pruner.kernels.expansion import expand
from vlm_pruner.kernels.pivots import choose_pivots
from vlm_pruner.kernels.screening import screen_channels

__all__ = ["choose_pivots", "expand", "fold", "screen_channels"]
