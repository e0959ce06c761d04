"""Score POPE answers with the field's command line; the numbers come from vlm_pruner.scoring.pope.

    python -m llava.eval.eval_pope --annotation-dir pope/coco --question-file pope/llava_pope_test.jsonl \\
        --result-file pope/answers/llava-v1.5-7b.jsonl --json pope.json
"""

import sys

from vlm_pruner.console import home
from vlm_pruner.llava.eval.scoring_command import Flag, command, data

main = command(
    "eval_pope",
    "pope",
    __doc__,
    data("--annotation-dir", "folder with coco_pope_*.json"),
    Flag("--question-file", "questions", {"required": True, "type": home, "help": "llava_pope_test.jsonl"}),
)

if __name__ == "__main__":
    sys.exit(main())
