"""Ask any supported checkpoint about one picture, dense or pruned: `load` it once, then `ask`."""

from vlm_pruner.asking.answer import Answer
from vlm_pruner.asking.chat import Chat
from vlm_pruner.asking.opening import load

__all__ = ["Answer", "Chat", "load"]
