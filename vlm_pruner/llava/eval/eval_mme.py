"""Score MME answers with the field's command line; the numbers come from vlm_pruner.scoring.mme.

    python -m llava.eval.eval_mme --annotation-dir MME \\
        --result-file MME/answers/llava-v1.5-7b.jsonl
"""

import sys

from vlm_pruner.llava.eval.scoring_command import command, data

main = command("eval_mme", "mme", __doc__, data("--annotation-dir", "folder with MME_Benchmark_release_version"))

if __name__ == "__main__":
    sys.exit(main())
