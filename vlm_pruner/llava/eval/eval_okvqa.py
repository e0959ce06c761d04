"""Score OK-VQA answers with the field's command line; the numbers come from vlm_pruner.scoring.okvqa.

    python -m llava.eval.eval_okvqa --annotation-file okvqa/mscoco_val2014_annotations.json \\
        --result-file okvqa/answers/llava-v1.5-7b.jsonl
"""

import sys

from vlm_pruner.llava.eval.scoring_command import Flag, command, data

main = command(
    "eval_okvqa",
    "okvqa",
    __doc__,
    data(
        "--annotation-file",
        "mscoco_val2014_annotations.json (default: %(default)s)",
        default="playground/data/eval/okvqa/mscoco_val2014_annotations.json",
    ),
    Flag("--dataset", "", {"default": "okvqa_val", "choices": ["okvqa_val"], "help": "the only one there is"}),
)

if __name__ == "__main__":
    sys.exit(main())
