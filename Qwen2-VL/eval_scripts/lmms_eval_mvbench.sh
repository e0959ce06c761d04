#!/usr/bin/env bash
# MVBench through lmms-eval. The paper does not name its four video benchmarks; this is one of those usually taken.
#   MODEL=lmms-lab/LLaVA-Video-7B-Qwen2 FAMILY=llava_vid FRAMES=64 bash Qwen2-VL/eval_scripts/lmms_eval_mvbench.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source Qwen2-VL/eval_scripts/common.sh

evaluate mvbench "$@"
