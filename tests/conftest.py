"""Read before any test file: without a GPU the kernels run in Triton's interpreter.

Triton looks at the variable when it is first imported, which may be in any file (transformers imports it, too).
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
