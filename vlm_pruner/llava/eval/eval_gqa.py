"""Score GQA answers with the field's command line; the numbers come from vlm_pruner.scoring.gqa.

    python -m llava.eval.eval_gqa --questions gqa/data/testdev_balanced_questions.json \\
        --result-file gqa/answers/llava-v1.5-7b.jsonl
"""

import sys

from vlm_pruner.llava.eval.scoring_command import command, data

main = command("eval_gqa", "gqa", __doc__, data("--questions", "testdev_balanced_questions.json"))

if __name__ == "__main__":
    sys.exit(main())
