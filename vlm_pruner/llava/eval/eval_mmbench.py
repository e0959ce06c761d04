"""Score MMBench answers with the field's command line; the numbers come from vlm_pruner.scoring.mmbench.

    python -m llava.eval.eval_mmbench --annotation-file mmbench/mmbench_dev_20230712.tsv \\
        --result-file mmbench/answers/llava-v1.5-7b.jsonl --upload mmbench/answers_upload
"""

import sys

from vlm_pruner.llava.eval.scoring_command import command, data

main = command("eval_mmbench", "mmbench", __doc__, data("--annotation-file", "mmbench_dev_20230712.tsv"))

if __name__ == "__main__":
    sys.exit(main())
