"""Ask any supported checkpoint about one picture, dense or pruned: `load` it once, then `ask`."""

from vlm_pruner.chat.answer import Answer
from vlm_pruner.chat.base import Chat
from vlm_pruner.chat.opening import load

__all__ = ["Answer", "Chat", "load"]
