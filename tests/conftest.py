"""Read before any test file. Without a GPU the kernels run in Triton's interpreter, and `-n auto` uses every core.

Triton looks at the variable when it is first imported, which may be in any file (transformers imports it, too).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch

# A worker of pytest-xdist takes whole files. The long ones come first, so that none is left when the others are done.
LONG = (
    "test_decoders.py", "test_kernels_gpu.py", "test_commands_families.py", "test_running_kinds.py", "test_web_page.py",
    "test_compare_command.py", "test_kernels.py", "test_eval_engine.py", "test_families_exactness.py",
    "test_compare_processes.py", "test_qwen_pruning.py", "test_project_demo.py", "test_families_generation.py",
    "test_eval_data.py", "test_eval_script.py", "test_families_running.py", "test_mini_training.py", "test_lmms_run.py",
)  # fmt: skip

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores, so each gets one thread, and so do its processes
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """Shows the garbage collector only what the test makes: imports have made millions of other objects."""
    gc.freeze()
    yield
    gc.unfreeze()
