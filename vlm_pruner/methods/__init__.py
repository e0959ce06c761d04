"""Pruning methods, one per file. `get(name)` returns one, `names()` lists them."""

from vlm_pruner.methods.base import Pruner, Selection, get, names, register
from vlm_pruner.methods.cdpruner import CDPruner
from vlm_pruner.methods.centrifugal import CentrifugalPruner
from vlm_pruner.methods.dart import DartPruner
from vlm_pruner.methods.divprune import DivPruner
from vlm_pruner.methods.fastervlm import FasterVLMPruner
from vlm_pruner.methods.fastv import FastVPruner
from vlm_pruner.methods.prumerge import PruMergePruner
from vlm_pruner.methods.pyramiddrop import PyramidDropPruner
from vlm_pruner.methods.random import RandomPruner
from vlm_pruner.methods.residual import QuestionResidualPruner, ResidualPruner
from vlm_pruner.methods.sparsevlm import SparseVLMPruner
from vlm_pruner.methods.view import View
from vlm_pruner.methods.visionzip import VisionZipPruner
from vlm_pruner.methods.vispruner import VisPruner
from vlm_pruner.methods.words import from_words, maker

__all__ = [
    "CDPruner",
    "CentrifugalPruner",
    "DartPruner",
    "DivPruner",
    "FastVPruner",
    "FasterVLMPruner",
    "PruMergePruner",
    "Pruner",
    "PyramidDropPruner",
    "QuestionResidualPruner",
    "RandomPruner",
    "ResidualPruner",
    "Selection",
    "SparseVLMPruner",
    "View",
    "VisPruner",
    "VisionZipPruner",
    "from_words",
    "get",
    "maker",
    "names",
    "register",
]
