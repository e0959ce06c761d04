"""Score OCRBench answers with the field's command line; the numbers come from vlm_pruner.scoring.ocrbench.

    python -m llava.eval.eval_ocrbench --annotation-file OCRBench/OCRBench/OCRBench.json \\
        --result-file OCRBench/answers/llava-v1.5-7b.jsonl
"""

import sys

from vlm_pruner.llava.eval.scoring_command import command, data

main = command(
    "eval_ocrbench",
    "ocrbench",
    __doc__,
    data("--annotation-file", "OCRBench.json; none for the released loader's list", default="."),
)

if __name__ == "__main__":
    sys.exit(main())
