#!/usr/bin/env bash
# SEED-Bench: answers, then accuracy on pictures with its standard error.   bash scripts/v1_5/eval/seed.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup seed seed_bench "$@"
# The published number is of the picture questions; ALL=1 asks about the videos' frames too.
chosen=(--image-prefix SEED-Bench-image/)
if [[ -n ${ALL:-} ]]; then chosen=(); fi
generate model_vqa_loader --question-file "$BENCH/llava-seed-bench.jsonl" --image-folder "$BENCH" \
    ${chosen[@]+"${chosen[@]}"}
score
