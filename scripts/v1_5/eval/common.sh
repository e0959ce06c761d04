# What the benchmark scripts share. Sourced, never run by itself.
#
#   MODEL   checkpoint folder               (default ./checkpoints/llava-v1.5-7b)
#   DATA    folder of the benchmarks        (default ./playground/data/eval)
#   MINI=1  the embedded model and its mini benchmarks, made on first use, in place of both
#   METHOD  pruning method                  (default vlm-pruner; others take RATIO only)
#   ALLOW_ERRORS=N  score although up to N items failed; they count as empty replies
#   VENV_PYTHON  interpreter                (default the project's .venv, else python)

# setup NAME RATIO [THRESHOLD TOKEN_BATCH] [FLAG ...]
# Sets benchmark, BENCH (its folder), answers, result, model_flags and pruning_flags; FLAGs go to the generator.
setup() {
    benchmark=$1
    shift
    local numbers=() zero='^0*\.?0*$'
    while [[ $# -gt 0 && $1 != -* && ${#numbers[@]} -lt 3 ]]; do
        numbers+=("$1")
        shift
    done
    if [[ ${#numbers[@]} -eq 0 || ( ${#numbers[@]} -lt 3 && ! ${numbers[0]} =~ $zero ) ]]; then
        echo "usage: [MODEL=DIR] [DATA=DIR] [MINI=1] bash $0 RATIO THRESHOLD TOKEN_BATCH [generator flags];" \
            "for example 0.889 0.8 16; RATIO 0 is the dense model" >&2
        exit 2
    fi
    more_flags=("$@")
    python=${VENV_PYTHON:-$(default_python)}
    choose_model_and_data
    pruning_flags=()
    arm=dense
    if ! [[ ${numbers[0]} =~ $zero ]]; then
        set_pruning "${numbers[@]}"
    fi
    local name
    name=$(basename "$MODEL")
    if [[ -n ${MINI:-} ]]; then name=mini; fi
    answers=$BENCH/answers/${name}_$arm.jsonl
    result=$BENCH/results/${name}_$arm.json
}

default_python() {
    if [[ -x .venv/bin/python ]]; then echo .venv/bin/python; else echo python; fi
}

choose_model_and_data() {
    if [[ -n ${MINI:-} ]]; then
        MODEL=playground/mini/checkpoint
        DATA=playground/data/mini
        [[ -e $DATA/$benchmark ]] || "$python" -m playground.mini.benchmarks --out "$DATA"
    fi
    MODEL=${MODEL:-./checkpoints/llava-v1.5-7b}
    BENCH=${DATA:-./playground/data/eval}/$benchmark
    model_flags=(--model-path "$MODEL" --conv-mode vicuna_v1 --temperature 0 --allow-errors "${ALLOW_ERRORS:-0}")
}

# set_pruning RATIO THRESHOLD TOKEN_BATCH: sets pruning_flags and arm, which names the answer file so that runs with other settings never meet.
set_pruning() {
    local method=${METHOD:-vlm-pruner}
    pruning_flags=(--sparse --method "$method" --reduction_ratio "$1")
    arm=${method}_r$1
    if [[ $method == vlm-pruner ]]; then
        pruning_flags+=(--threshold "$2" --token_batch "$3")
        arm+=_t$2_b$3
    fi
}

# need PATH...: stops with the name of each file or folder that is missing.
need() {
    local missing=() path
    for path in "$MODEL" "$@"; do
        [[ -e $path ]] || missing+=("$path")
    done
    if (( ${#missing[@]} )); then
        echo "$benchmark: missing:" >&2
        printf '  %s\n' "${missing[@]}" >&2
        echo "docs/evaluation.md says where each comes from; MODEL= and DATA= choose other folders, MINI=1 needs neither." >&2
        exit 2
    fi
}

# generate MODULE FLAG...: answers the questions; runs again only what is missing.
generate() {
    local module=$1
    shift
    "$python" -m "llava.eval.$module" "${model_flags[@]}" --answers-file "$answers" "$@" \
        ${pruning_flags[@]+"${pruning_flags[@]}"} ${more_flags[@]+"${more_flags[@]}"}
}

# score MODULE FLAG...: prints the table, writes the result file.
score() {
    local module=$1
    shift
    "$python" -m "llava.eval.$module" "$@" --result-file "$answers" --json "$result" \
        --allow-errors "${ALLOW_ERRORS:-0}"
    echo "answers: $answers   result: $result"
}
