#!/usr/bin/env bash
# MME: answers, then perception + cognition with its standard error.   bash scripts/v1_5/eval/mme.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup mme MME "$@"
images=$BENCH/MME_Benchmark_release_version
if [[ -d $images/MME_Benchmark ]]; then images+=/MME_Benchmark; fi
generate model_vqa_loader --question-file "$BENCH/llava_mme.jsonl" --image-folder "$images"
score
