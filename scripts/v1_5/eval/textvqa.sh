#!/usr/bin/env bash
# TextVQA: answers, then the VQA score with its standard error.   bash scripts/v1_5/eval/textvqa.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup textvqa textvqa "$@"
generate model_vqa_loader --question-file "$BENCH/llava_textvqa_val_v051_ocr.jsonl" \
    --image-folder "$BENCH/train_images" --is_textvqa
score
