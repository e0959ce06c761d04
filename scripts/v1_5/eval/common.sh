# Shared by the benchmark scripts. Source it; do not run it.
#
#   MODEL   checkpoint folder               (default ./checkpoints/llava-v1.5-7b)
#   DATA    folder of the benchmarks        (default ./playground/data/eval)
#   MINI=1  the embedded model and its mini benchmarks, made on first use, in place of both
#   METHOD  pruning method, resize (a smaller picture) or blind (no picture)
#                                           (default vlm-pruner; others take RATIO only; dense is RATIO 0)
#   BATCH   questions per generate call     (default 1)
#   LIMIT=N answer the first N questions only
#   SEED    of methods that draw, such as random
#   PROCESSES=N     answer with N processes, one GPU each, under accelerate
#   ALLOW_ERRORS=N  score although up to N items failed; they count as empty replies
#   VENV_PYTHON     interpreter             (default the project's .venv, else python)

# setup BENCHMARK FOLDER RATIO [THRESHOLD TOKEN_BATCH] [FLAG ...]
# Checks that all data are there. Sets BENCH (the benchmark's folder), answers, result and the flags of `generate`.
setup() {
    benchmark=$1 folder=$2
    shift 2
    local numbers=() zero='^0*\.?0*$'
    while [[ $# -gt 0 && $1 != -* && ${#numbers[@]} -lt 3 ]]; do
        numbers+=("$1")
        shift
    done
    if [[ ${#numbers[@]} -eq 0 || ( ${#numbers[@]} -lt 3 && ! ${numbers[0]} =~ $zero ) ]]; then
        echo "usage: [MODEL=DIR] [DATA=DIR] [MINI=1] [METHOD=NAME] bash $0 RATIO THRESHOLD TOKEN_BATCH" \
            "[generator flags]; for example 0.889 0.8 16; RATIO 0 is the dense model" >&2
        exit 2
    fi
    more_flags=("$@")
    python=${VENV_PYTHON:-$(default_python)}
    choose_model_and_data
    pruning_flags=()
    arm=dense
    if ! [[ ${numbers[0]} =~ $zero || ${METHOD:-} == dense ]]; then
        set_pruning "${numbers[@]}"
    fi
    set_run_flags
    local name
    name=$(basename "$MODEL")
    if [[ $MODEL == playground/mini/checkpoint ]]; then name=mini; fi
    answers=$BENCH/answers/${name}_$arm.jsonl
    result=$BENCH/results/${name}_$arm.json
}

default_python() {
    if [[ -x .venv/bin/python ]]; then echo .venv/bin/python; else echo python; fi
}

choose_model_and_data() {
    if [[ -n ${MINI:-} ]]; then
        MODEL=${MODEL:-playground/mini/checkpoint}
        DATA=${DATA:-playground/data/mini}
        [[ -e $DATA/$folder ]] || "$python" -m playground.mini.benchmarks --out "$DATA" --only "$folder" >&2
    fi
    MODEL=${MODEL:-./checkpoints/llava-v1.5-7b}
    DATA=${DATA:-./playground/data/eval}
    BENCH=$DATA/$folder
    if [[ ! -e $MODEL ]]; then
        echo "$benchmark: there is no checkpoint $MODEL: MODEL=DIR chooses another, MINI=1 needs no download" >&2
        exit 2
    fi
    if ! "$python" -m vlm_pruner.cli check-data "$benchmark" --data "$DATA" >&2; then
        echo "docs/evaluation.md says where each file comes from; DATA=DIR chooses another folder, MINI=1 needs none" >&2
        exit 2
    fi
}

# set_pruning RATIO THRESHOLD TOKEN_BATCH: sets pruning_flags, and arm, which names the answer file so that runs with
# other settings never meet.
set_pruning() {
    local method=${METHOD:-vlm-pruner}
    pruning_flags=(--sparse --method "$method" --reduction_ratio "$1")
    arm=${method//\//_}_r$1  # a method may be a file: my/file.py:MyPruner
    if [[ $method == vlm-pruner ]]; then
        pruning_flags+=(--threshold "$2" --token_batch "$3")
        arm+=_t$2_b$3
    fi
}

set_run_flags() {
    run_flags=(--model-path "$MODEL" --conv-mode vicuna_v1 --temperature 0 --allow-errors "${ALLOW_ERRORS:-0}")
    if [[ -n ${BATCH:-} ]]; then run_flags+=(--batch-size "$BATCH"); fi
    if [[ -n ${LIMIT:-} ]]; then run_flags+=(--limit "$LIMIT"); fi
    if [[ -n ${SEED:-} ]]; then
        run_flags+=(--seed "$SEED")
        arm+=_s$SEED
    fi
    launch=("$python" -m)
    if (( ${PROCESSES:-1} > 1 )); then
        launch=("$python" -m accelerate.commands.launch --multi_gpu --num_processes "$PROCESSES" --num_machines 1
            --mixed_precision no --dynamo_backend no -m)
    fi
}

# generate MODULE FLAG...: answers the questions; run again, only those that are missing.
generate() {
    local module=$1
    shift
    "${launch[@]}" "llava.eval.$module" "${run_flags[@]}" --answers-file "$answers" "$@" \
        ${pruning_flags[@]+"${pruning_flags[@]}"} ${more_flags[@]+"${more_flags[@]}"}
}

# score [FLAG ...]: prints the table with standard errors, writes the result file.
score() {
    "$python" -m vlm_pruner.cli score "$benchmark" --data "$BENCH" --answers "$answers" --json "$result" \
        --allow-errors "${ALLOW_ERRORS:-0}" "$@"
    echo "answers: $answers   result: $result"
}
