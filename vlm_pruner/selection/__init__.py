"""The mathematics of VLM-Pruner: pure tensors in, indices out. Knows nothing of models.

pivots: where selection starts. expansion: how it grows. aggregation: what becomes of dropped tokens.
"""

from vlm_pruner.selection.aggregation import fold
from vlm_pruner.selection.expansion import Expansion, expand
from vlm_pruner.selection.pivots import choose_pivots
from vlm_pruner.selection.screening import screen_channels

__all__ = ["Expansion", "choose_pivots", "expand", "fold", "screen_channels"]
