"""Names and ids shared by LLaVA's prompts, checkpoints and scripts."""

from __future__ import annotations

IGNORE_INDEX = -100
"""Label that the loss ignores."""

IMAGE_TOKEN_INDEX = -200
"""Id of one picture in `input_ids`; outside every vocabulary."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
