#!/usr/bin/env bash
# Runs the tests that depend on transformers with the oldest version that pyproject.toml allows. Part of scripts/test.sh.
#
# .venv-oldest contains that transformers and whatever it cannot share with .venv; the rest comes from .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh

venv=.venv-oldest
version="$(sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)"
stamp=.vlm-pruner-stamp  # of .venv: recreate this environment whenever .venv changes
if ! cmp -s ".venv/$stamp" "$venv/$stamp"; then
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    folder() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    # `addsitedir` also reads the .pth files there, one of which points to this repository.
    echo "import site; site.addsitedir('$PWD/$(realpath --relative-to="$PWD" "$(folder .venv)")')" >"$(folder "$venv")/newest.pth"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "transformers==$version.*"
    cp ".venv/$stamp" "$venv/$stamp"
fi

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$venv/bin/python" -c 'import transformers; print("transformers", transformers.__version__)'
"$venv/bin/python" -m pytest -q -n auto -p no:cacheprovider --durations=0 --durations-min=5 \
    tests/test_cache_names.py tests/test_pruning*.py tests/test_families*.py tests/test_llava_*.py tests/test_qwen_*.py \
    tests/test_methods_{models,stages,renumber,input,tower}.py tests/test_cost.py tests/test_eval_engine.py \
    tests/test_bench*.py "$@"
