"""Barriers for several programs that work on one image together within a launch.

Why they cannot deadlock: a waiting program needs all C programs of its image to run. The grid never has more programs
than the GPU has multiprocessors (`programs`), each fits on one, and kernels of other streams finish without waiting for
this one. So every program eventually gets a multiprocessor and keeps it.

Triton's interpreter runs programs sequentially and could not pass a barrier, so C is 1 there. The tests interleave
programs at every memory access, and detect each missing barrier. They cannot show when the writes of one program, or
one thread, become visible to another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def wait_for_all(counter, passed, C: tl.constexpr):
    """Waits for all C programs of the image. Returns the number of barriers passed.

    counter: int32 [], arrivals at all barriers; zero at the launch.
    Load other programs' writes past the first-level cache (.cg) afterwards, which does not see them.
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
    """Programs per image: at most one per block of tokens, and over all images at most one per multiprocessor."""
    if not like.is_cuda:
        return 1
    processors = torch.cuda.get_device_properties(like.device).multi_processor_count
    return max(1, min(blocks, processors // images))
