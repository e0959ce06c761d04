#!/usr/bin/env bash
# Tests a model that two CPU processes share (DeepSpeed ZeRO-3, tensor parallelism): `make test-zero3`.
#
#   bash scripts/test_zero3.sh              all of tests/zero3
#   bash scripts/test_zero3.sh -k fastv     further arguments go to pytest
#
# Makes its environment once (.venv-zero3: DeepSpeed, and whatever .venv has). DeepSpeed compiles an extension on its
# first start (a minute or two, a C++ compiler); its files lie in .venv-zero3/extensions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEEPSPEED=0.19.8
VENV=.venv-zero3
STAMP=$VENV/.deepspeed-$DEEPSPEED
export DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$PWD/$VENV/extensions CUDA_VISIBLE_DEVICES=
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

install() {
    [ -x .venv/bin/python ] || bash scripts/setup_env.sh
    rm -rf "$VENV"
    .venv/bin/python -m venv "$VENV"
    folder() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    # `addsitedir` also reads the .pth files there, one of which points to this repository.
    echo "import site; site.addsitedir('$PWD/$(realpath --relative-to="$PWD" "$(folder .venv)")')" >"$(folder "$VENV")/base.pth"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        "deepspeed==$DEEPSPEED" hjson ninja py-cpuinfo einops msgpack
    touch "$STAMP"
}

compile() {
    echo "DeepSpeed compiles its CPU communication (once, a minute or two; stopped after 10) ..." >&2
    timeout 600 "$VENV/bin/python" -m torch.distributed.run --nproc_per_node 1 --standalone --no-python \
        "$VENV/bin/python" -c 'import deepspeed; deepspeed.init_distributed("gloo", auto_mpi_discovery=False)' >&2
}

[ -f "$STAMP" ] || install
export PATH="$PWD/$VENV/bin:$PATH" # ninja
# A process that was killed while it compiled has left a lock, for which every later start would wait.
find "$TORCH_EXTENSIONS_DIR" -name lock -delete 2>/dev/null || true
[ -n "$(find "$TORCH_EXTENSIONS_DIR" -name '*.so' 2>/dev/null)" ] || compile

"$VENV/bin/python" -m pytest -c tests/zero3/pytest.ini --rootdir=. -q -p no:cacheprovider tests/zero3 "$@"
