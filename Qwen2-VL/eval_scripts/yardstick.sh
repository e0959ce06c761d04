#!/usr/bin/env bash
# AngelSlim's eleven tasks for Qwen2.5-VL-7B through lmms-eval: one of them, or all.
#   bash Qwen2-VL/eval_scripts/yardstick.sh all 0.75 0.8 16       25 % of the visual tokens kept
#   bash Qwen2-VL/eval_scripts/yardstick.sh chartqa 0.9 0.8 16    10 %
#   METHOD=divprune bash Qwen2-VL/eval_scripts/yardstick.sh all 0.75 0.8 16   (others than vlm-pruner take the ratio only)
#   bash Qwen2-VL/eval_scripts/yardstick.sh all 0                 dense
# Then: vlm-pruner table --layout qwen2.5-vl results/lmms_eval
# The variables of common.sh hold; MODEL is Qwen/Qwen2.5-VL-7B-Instruct and FAMILY qwen2_5_vl by default, and the limits
# on pixels are those of lmms-eval's own model of that family.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source Qwen2-VL/eval_scripts/common.sh

TASKS="ai2d chartqa docvqa_val mmbench_cn_dev mmbench_en_dev mme mmstar ocrbench pope scienceqa_img textvqa_val"
MODEL=${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}
FAMILY=${FAMILY:-qwen2_5_vl}
MIN_PIXELS=${MIN_PIXELS:-200704}
MAX_PIXELS=${MAX_PIXELS:-1605632}

# short NAME: lmms-eval's task of a name such as docvqa, or the name itself.
short() {
    case $1 in
        docvqa) echo docvqa_val ;;
        mmbench_cn | mmbench_en) echo "$1_dev" ;;
        scienceqa | sqa) echo scienceqa_img ;;
        textvqa) echo textvqa_val ;;
        *) echo "$1" ;;
    esac
}

usage() {
    echo "usage: bash $0 all|TASK RATIO [THRESHOLD TOKEN_BATCH] [lmms-eval flags]; tasks: $TASKS" >&2
    exit 2
}

chosen=$(short "${1:-}")
if [[ $chosen == all ]]; then
    chosen=$TASKS
elif [[ -z $chosen || $chosen == *" "* || " $TASKS " != *" $chosen "* ]]; then
    usage
fi
shift
for task in $chosen; do
    evaluate "$task" "$@"
done
