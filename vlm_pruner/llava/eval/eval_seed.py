"""Score SEED-Bench answers with the field's command line; the numbers come from vlm_pruner.scoring.seed.

    python -m llava.eval.eval_seed --annotation-file seed_bench/SEED-Bench.json \\
        --result-file seed_bench/answers/llava-v1.5-7b.jsonl --upload seed_bench/answers_upload
"""

import sys

from vlm_pruner.llava.eval.scoring_command import command, data

main = command("eval_seed", "seed", __doc__, data("--annotation-file", "SEED-Bench.json"))

if __name__ == "__main__":
    sys.exit(main())
