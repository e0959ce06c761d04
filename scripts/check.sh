#!/usr/bin/env bash
# Format, lint, types, layers and docs: every check that does not run the code. All steps run, even after a failure, so
# that one run shows everything there is to fix.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${VENV_PYTHON:-.venv/bin/python}"

failed=()
step() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}
step format "$python" -m ruff format --check .
step lint "$python" -m ruff check .
step types "$python" -m mypy
step consumer "$python" -m mypy tests/typed_consumer.py  # with the cache of the step before
step layers "$(dirname "$python")/lint-imports" --no-logo
step docs "$python" -m sphinx -q -W --keep-going -b html docs build/docs

if ((${#failed[@]})); then
    echo "check failed: ${failed[*]}" >&2
    exit 1
fi
