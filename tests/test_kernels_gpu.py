"""The GPU kernels' last mile, as far as it can be tested without a GPU: they compile, and the script runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:  # not imported here: test_kernels.py must be the first to do so
    pytest.skip("Triton is not installed: pip install 'vlm-pruner[kernels]'", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from vlm_pruner.kernels import aggregation, expansion, pivots, screening

def build(kernel, types, constants):
    names = kernel.arg_names
    kinds = types.split() + ["constexpr"] * len(constants)
    assert len(kinds) == len(names), names
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=dict(zip(names, kinds)), constexprs=constants)
    print(kernel.__name__, len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))

sizes = {"BLOCK_N": 256, "BLOCK_D": 1024, "BLOCK_T": 8}
build(aggregation._fold_kernel, "*bf16 *i64 *i64 *fp32 *bf16 i32 i32 fp32", sizes)
sizes = {"BLOCK_N": 8, "BLOCK_D": 1024, "C": 132, "SLOTS": 256}
build(pivots._pivots_kernel, "*bf16 *i64 *fp32 *fp32 *i32 *i32 i32 i32 i32", sizes)
build(screening._spread_kernel, "*bf16 *fp32 i32 i32", {"BLOCK_N": 64, "BLOCK_D": 32})
build(screening._largest_kernel, "*fp32 *i32 i32 i32", {"BLOCK_D": 4096})
build(screening._unit_kernel, "*bf16 *i32 *fp32 i32 i32 i32", {"BLOCK_N": 8, "BLOCK_Q": 256})
arrays = "*fp32 *fp32 *i64 *i64 *i64 *i64 *fp32 *fp32 *i32 *i32 *i32 *i32 *fp32 *i32"
for axes, batch in ((2, 1), (3, 16)):
    sizes = {"P": axes, "B": batch, "W": 64, "BN": 64, "BJ": 256, "BS": 1024, "BQ": 32, "C": 9}
    build(expansion._expand_kernel, arrays + " i32 i32 i32 i32 fp32 fp32 fp32 fp32 fp32", sizes)
"""


def run(tmp_path, *command, **environment):
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300
    )


def test_every_kernel_compiles_for_an_h200(tmp_path):
    file = tmp_path / "build.py"
    file.write_text(COMPILE)
    done = run(tmp_path, file, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 14 and all(int(size) > 0 for size in done.stdout.split()[1::2])


def test_gpu_check_runs_every_section_dry(tmp_path):
    out = tmp_path / "check.json"
    done = run(tmp_path, "benchmarks/gpu_check.py", "--cpu-dry-run", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["dry_run"] and record["failed"] == 0
    names = " ".join(check["name"] for check in record["checks"])
    for part in (
        "as on the CPU",
        "goldens",
        "together as alone",
        "never waits",
        "CUDA graph",
        "compile",
        "selection + SWA",
        "at once",
        "prefill",
    ):
        assert part in names


def test_gpu_check_without_a_gpu_says_so(tmp_path):
    done = run(tmp_path, "benchmarks/gpu_check.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "no GPU" in done.stdout
