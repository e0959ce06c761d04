"""The mathematics of VLM-Pruner: tensors in, indices out. Knows nothing about models.

pivots: the initial tokens. expansion: how the kept set grows. aggregation: how dropped tokens merge into kept ones.
"""

from vlm_pruner.selection.aggregation import fold
from vlm_pruner.selection.expansion import Expansion, expand
from vlm_pruner.selection.pivots import choose_pivots
from vlm_pruner.selection.screening import screen_channels

__all__ = ["Expansion", "choose_pivots", "expand", "fold", "screen_channels"]
