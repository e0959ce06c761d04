"""Evaluation: answer generators (``model_vqa_*``) over one runner, and the field's scoring commands (``eval_*``)."""
