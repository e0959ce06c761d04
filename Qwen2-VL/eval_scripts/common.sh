# Shared by the lmms-eval scripts. Source it; do not run it.
#
#   MODEL        checkpoint folder or Hub name    (default Qwen/Qwen2-VL-7B-Instruct)
#   FAMILY       qwen2_vl, qwen2_5_vl, qwen3_vl, llava, llava_vid, llava_onevision or hf, which takes all others
#                (default qwen2_vl)
#   METHOD       pruning method                   (default vlm-pruner; others take RATIO only; dense is RATIO 0)
#   MAX_PIXELS   an image is scaled down to it    (default 1003520, the paper's; not for llava...)
#   MIN_PIXELS VIDEO_MIN_PIXELS VIDEO_MAX_PIXELS TOTAL_PIXELS FPS SYSTEM_PROMPT
#                as in --model_args               (default the model's; not for llava...)
#   FRAMES       frames of a video                (default the model's: 20 for llava_vid, else 32)
#   EXTRA        more --model_args, such as force_sample=True,add_time_instruction=True
#   DTYPE ATTN   bfloat16 and sdpa, as the paper; DEVICE=cpu runs on the processor (DTYPE=float32 then)
#   BATCH        documents per generate call      (default 1)
#   PROCESSES    processes, one GPU each          (default 1)
#   OUT          folder of results                (default ./results/lmms_eval)
#   LIMIT=N      answer the first N documents only
#   SEED         of methods that draw, such as random
#   RECEIPTS=1   write what was kept of every document beside the results
#   TASK INCLUDE another task than the script's, and a folder of tasks that are not lmms-eval's own
#   DRY_RUN=1    print the command, start nothing
#   VENV_PYTHON  interpreter with lmms-eval       (default the project's .venv, else python)

# evaluate TASK RATIO [THRESHOLD TOKEN_BATCH] [FLAG ...]: checks that all is there, runs lmms-eval with the flags.
evaluate() {
    local task=${TASK:-$1}
    shift
    local numbers=() zero='^0*\.?0*$'
    while [[ $# -gt 0 && $1 != -* && ${#numbers[@]} -lt 3 ]]; do
        numbers+=("$1")
        shift
    done
    if [[ ${#numbers[@]} -eq 0 || ( ${#numbers[@]} -lt 3 && ! ${numbers[0]} =~ $zero ) ]]; then
        echo "usage: [MODEL=DIR] [FAMILY=NAME] [METHOD=NAME] [DRY_RUN=1] bash $0 RATIO THRESHOLD TOKEN_BATCH" \
            "[lmms-eval flags]; for example 0.667 0.8 16; RATIO 0 is the dense model" >&2
        exit 2
    fi
    python=${VENV_PYTHON:-$(default_python)}
    MODEL=${MODEL:-Qwen/Qwen2-VL-7B-Instruct}
    arm=dense
    pruning=
    if ! [[ ${numbers[0]} =~ $zero || ${METHOD:-} == dense ]]; then
        set_pruning "${numbers[@]}"
    fi
    if [[ -n ${SEED:-} ]]; then arm+=_s$SEED; fi
    output=${OUT:-./results/lmms_eval}/$(basename "$MODEL")/$arm/$task
    set_command "$task" "$@"
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "${command[@]}"
        echo
        return
    fi
    check "$task"
    run
}

default_python() {
    if [[ -x .venv/bin/python ]]; then echo .venv/bin/python; else echo python; fi
}

# set_pruning RATIO THRESHOLD TOKEN_BATCH: sets pruning, for --model_args, and arm, which names the folder of results.
set_pruning() {
    local method=${METHOD:-vlm-pruner}
    pruning=,method=$method,reduction_ratio=$1
    arm=${method//\//_}_r$1  # a method may be a file: my/file.py:MyPruner
    if [[ $method == vlm-pruner ]]; then
        pruning+=,threshold=$2,token_batch=$3
        arm+=_t$2_b$3
    fi
}

# set_command TASK [FLAG ...]
set_command() {
    local task=$1 family=${FAMILY:-qwen2_vl} launch
    shift
    local model_args=pretrained=$MODEL,dtype=${DTYPE:-bfloat16},attn_implementation=${ATTN:-sdpa}
    if [[ $family == llava* ]]; then
        if [[ -n ${FRAMES:-} ]]; then model_args+=,max_frames_num=$FRAMES; fi
    else
        # Of Qwen3-VL the paper's limit is not known: lmms-eval's own holds.
        if [[ $family != qwen3_vl || -n ${MAX_PIXELS:-} ]]; then model_args+=,max_pixels=${MAX_PIXELS:-1003520}; fi
        if [[ -n ${MIN_PIXELS:-} ]]; then model_args+=,min_pixels=$MIN_PIXELS; fi
        if [[ -n ${VIDEO_MIN_PIXELS:-} ]]; then model_args+=,video_min_pixels=$VIDEO_MIN_PIXELS; fi
        if [[ -n ${VIDEO_MAX_PIXELS:-} ]]; then model_args+=,video_max_pixels=$VIDEO_MAX_PIXELS; fi
        if [[ -n ${TOTAL_PIXELS:-} ]]; then model_args+=,total_pixels=$TOTAL_PIXELS; fi
        if [[ -n ${FRAMES:-} ]]; then model_args+=,max_num_frames=$FRAMES; fi
        if [[ -n ${FPS:-} ]]; then model_args+=,fps=$FPS; fi
        if [[ -n ${SYSTEM_PROMPT:-} ]]; then model_args+=,system_prompt=$SYSTEM_PROMPT; fi
    fi
    if [[ -n ${EXTRA:-} ]]; then model_args+=,$EXTRA; fi
    if [[ -n ${SEED:-} ]]; then model_args+=,seed=$SEED; fi
    if [[ -n ${RECEIPTS:-} && -n $pruning ]]; then model_args+=,receipts=$output/receipts.jsonl; fi
    model_args+=$pruning
    launch=(--num_processes "${PROCESSES:-1}" --num_machines 1 --mixed_precision no --dynamo_backend no)
    # --multi_gpu is accelerate's way to start several processes, on a CPU too; with --cpu it would start one.
    if (( ${PROCESSES:-1} > 1 )); then
        launch+=(--multi_gpu)
        if [[ ${DEVICE:-} == cpu ]]; then export ACCELERATE_USE_CPU=true; fi
    elif [[ ${DEVICE:-} == cpu ]]; then
        launch+=(--cpu)
    fi
    # At any other verbosity lmms-eval prints an exception, exits with 0, and leaves other processes waiting for it.
    command=("$python" -m accelerate.commands.launch "${launch[@]}" -m lmms_eval --model "vlm_pruner_$family"
        --model_args "$model_args" --tasks "$task" --batch_size "${BATCH:-1}" --log_samples --output_path "$output"
        --verbosity DEBUG)
    if [[ -n ${INCLUDE:-} ]]; then command+=(--include_path "$INCLUDE"); fi
    if [[ -n ${LIMIT:-} ]]; then command+=(--limit "$LIMIT"); fi
    command+=("$@")
}

check() {
    local include=()
    if [[ -n ${INCLUDE:-} ]]; then include=(--include-path "$INCLUDE"); fi
    if ! "$python" -m vlm_pruner.lmms.check --model-path "$MODEL" --tasks "$1" ${include[@]+"${include[@]}"} >&2; then
        echo "docs/lmms_eval.md says how to get what is missing" >&2
        exit 2
    fi
}

# A run without a result has failed, whatever its exit code says.
run() {
    mkdir -p "$output"
    local started=$output/.started
    touch "$started"
    "${command[@]}"
    result=$(find "$output" -name '*_results.json' -newer "$started" | head -n 1)
    rm -f "$started"
    if [[ -z $result ]]; then
        echo "lmms-eval ended without a result in $output; its output above says why" >&2
        exit 1
    fi
    echo "result: $result"
}
