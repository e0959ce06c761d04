#!/usr/bin/env bash
# Tests the plug-in inside the real lmms-eval, offline, on the CPU. Creates .venv-lmms if it is missing.
#
#   bash scripts/test_lmms_eval.sh               # python3 from the PATH
#   bash scripts/test_lmms_eval.sh -k videos     # options are pytest's
#
# lmms-eval brings more than fifty packages, so it has its own environment. As in setup_env.sh, the last step writes a
# stamp with a hash of the environment's inputs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv-lmms
stamp="$venv/.vlm-pruner-stamp"
python="${PYTHON:-python3}"
wanted="$({ pwd; "$python" -c 'import sys; print(sys.version_info[:2])'; cat pyproject.toml constraints.txt; } |
    "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$wanted" ]]; then
    echo "test_lmms_eval: creating $venv (a few minutes, 2.4 GB)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lmms-eval]' pytest pytest-xdist
    # With a torch without CUDA, the registries' torchvision fails on import, and so does everything that imports it.
    if ! "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then
        "$venv/bin/python" -m pip uninstall --quiet --yes torchvision
    fi
    echo "$wanted" >"$stamp"
    echo "test_lmms_eval: environment created in ${SECONDS} s"
fi
HF_HUB_OFFLINE=1 HF_HOME="${TMPDIR:-/tmp}/vlm-pruner-lmms-home" \
    "$venv/bin/python" -m pytest -n auto tests/test_lmms_run.py tests/test_lmms.py "$@"
