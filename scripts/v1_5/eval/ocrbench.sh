#!/usr/bin/env bash
# OCRBench: answers, then points of 1000 with its standard error.   bash scripts/v1_5/eval/ocrbench.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup ocrbench OCRBench "$@"
generate model_vqa_ocrbench --question-file "$BENCH/OCRBench/OCRBench.json" --image-folder "$BENCH/OCRBench_Images"
score
