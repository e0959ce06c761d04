#!/usr/bin/env bash
# The plug-in inside the real lmms-eval, offline, on the CPU: makes .venv-lmms when it is missing, then runs the tests.
#
#   bash scripts/test_lmms_eval.sh               # python3 from the PATH
#   bash scripts/test_lmms_eval.sh -k videos     # options are pytest's
#
# lmms-eval brings more than fifty packages, which is why it has an environment of its own. As in setup_env.sh, a stamp
# written as the last step holds a hash of what the environment was made from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv-lmms
stamp="$venv/.vlm-pruner-stamp"
python="${PYTHON:-python3}"
wanted="$({ pwd; "$python" -c 'import sys; print(sys.version_info[:2])'; cat pyproject.toml constraints.txt; } |
    "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$wanted" ]]; then
    echo "test_lmms_eval: making $venv (a few minutes, 2.4 GB)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lmms-eval]' pytest
    # Beside a torch without CUDA, the registries' torchvision cannot be imported, and then nor can what tries it.
    if ! "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then
        "$venv/bin/python" -m pip uninstall --quiet --yes torchvision
    fi
    echo "$wanted" >"$stamp"
    echo "test_lmms_eval: environment made in ${SECONDS} s"
fi
HF_HUB_OFFLINE=1 HF_HOME="${TMPDIR:-/tmp}/vlm-pruner-lmms-home" \
    "$venv/bin/python" -m pytest tests/test_lmms_run.py tests/test_lmms.py "$@"
