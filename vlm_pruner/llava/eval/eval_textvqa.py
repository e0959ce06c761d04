"""Score TextVQA answers with the field's command line; the numbers come from :mod:`vlm_pruner.scoring.textvqa`.

    python -m llava.eval.eval_textvqa --annotation-file textvqa/TextVQA_0.5.1_val.json \\
        --result-file textvqa/answers/llava-v1.5-7b.jsonl
"""

from __future__ import annotations

import sys

from vlm_pruner.llava.eval.scoring_command import command, data

main = command(
    "eval_textvqa", "textvqa", __doc__, data("--annotation-file", "TextVQA_0.5.1_val.json"),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
