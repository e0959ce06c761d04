"""Score ScienceQA answers with the field's command line; the numbers come from vlm_pruner.scoring.scienceqa.

    python -m llava.eval.eval_science_qa --base-dir scienceqa \\
        --result-file scienceqa/answers/llava-v1.5-7b.jsonl --json scienceqa.json
"""

import sys

from vlm_pruner.llava.eval.scoring_command import Flag, command, data

main = command(
    "eval_science_qa",
    "scienceqa",
    __doc__,
    data("--base-dir", "folder with problems.json and pid_splits.json"),
    Flag("--split", "split", {"default": "test"}),
)

if __name__ == "__main__":
    sys.exit(main())
