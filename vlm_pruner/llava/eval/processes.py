"""Several processes, started by ``accelerate launch`` or ``torchrun``, that answer one question file together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # finished processes wait for the slowest one


@dataclass(frozen=True)
class Team:
    """This process among ``size``. Inside its context the processes can wait for each other."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``size``-th item, so that long and short questions spread evenly."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Blocks until every process gets here."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def __enter__(self) -> Team:
        if self.size > 1:
            import torch.cuda
            import torch.distributed

            # The parts of a divided model travel between GPUs; answers and waiting need no GPU.
            gpus = under_deepspeed() and torch.cuda.is_available()
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.size > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()


def under_deepspeed() -> bool:
    """Whether accelerate was started with DeepSpeed, so that the processes share one model."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def this_process() -> Team:
    """Read from the launchers' environment variables; a team of one without them."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return Team()
    rank, size, local_rank = (int(os.environ[name]) for name in names)
    return Team(rank, size, local_rank)
