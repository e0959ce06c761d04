"""Several programs that work on one image together, and wait for each other within a launch.

Why that cannot deadlock: programs that wait need all C of their image to run. The grid never has more programs than
the GPU has multiprocessors (`programs`), each fits on one, and kernels of other streams end without waiting for this
one: so every program gets a place at some time, and none gives its place up.

Triton's interpreter runs programs one after the other and could not pass a barrier: there C is 1. The tests make them
take turns at every access to memory, and notice each barrier that is left out. What they cannot show is when one
program's writes, or one thread's, become visible to another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def wait_for_all(counter, passed, C: tl.constexpr):
    """Waits for all C programs of the image. Returns how many barriers have been passed; `counter` counts arrivals.

    What other programs have written is then to be loaded past the first-level cache (.cg), which does not see it.
    """
    passed += 1
    tl.debug_barrier()  # all threads of this program have written
    if C > 1:
        tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        while tl.atomic_add(counter, 0, sem="acq_rel", scope="gpu") < passed * C:
            pass
        tl.debug_barrier()
    return passed


def programs(like: Tensor, images: int, blocks: int) -> int:
    """Programs for each image: at most one for each block of tokens, and of all images one for each multiprocessor."""
    if not like.is_cuda:
        return 1
    processors = torch.cuda.get_device_properties(like.device).multi_processor_count
    return max(1, min(blocks, processors // images))


def counters(like: Tensor, images: int) -> Tensor:
    """Int [I], 0: a counter for each image, for one launch."""
    return torch.zeros(images, dtype=torch.int32, device=like.device)
