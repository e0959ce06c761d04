#!/usr/bin/env bash
# Tests the plug-in inside the real lmms-eval, offline, on the CPU. Creates .venv-lmms if it is missing.
#
#   bash scripts/test_lmms_eval.sh               # python3 from the PATH
#   bash scripts/test_lmms_eval.sh -k videos     # options are pytest's
#
# lmms-eval brings more than fifty packages, so it has its own environment, which holds what .venv lacks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh

venv=.venv-lmms
stamp=.vlm-pruner-stamp  # of .venv: recreate this environment whenever .venv changes
if ! cmp -s ".venv/$stamp" "$venv/$stamp"; then
    echo "test_lmms_eval: creating $venv (a few minutes, 1.2 GB)"
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    folder() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    # `addsitedir` also reads the .pth files there, one of which points to this repository.
    echo "import site; site.addsitedir('$PWD/$(realpath --relative-to="$PWD" "$(folder .venv)")')" >"$(folder "$venv")/newest.pth"
    mapfile -t wanted < <(.venv/bin/python -c 'from importlib.metadata import requires
print(*(line.split(";")[0].strip() for line in requires("vlm-pruner") if "lmms-eval" in line), sep="\n")')
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "${wanted[@]}"
    # With a torch without CUDA, the registries' torchvision fails on import, and so does everything that imports it.
    if ! "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then
        "$venv/bin/python" -m pip uninstall --quiet --yes torchvision
    fi
    cp ".venv/$stamp" "$venv/$stamp"
    echo "test_lmms_eval: environment created in ${SECONDS} s"
fi
HF_HUB_OFFLINE=1 HF_HOME="${TMPDIR:-/tmp}/vlm-pruner-lmms-home" \
    "$venv/bin/python" -m pytest -n auto tests/test_lmms_run.py tests/test_lmms.py "$@"
