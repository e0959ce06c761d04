"""What a stranger installs: the wheel and the source archive, built from the files that git tracks.

The wheel is unpacked and put first on the path of new interpreters, in which the names of a clone are blocked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from vlm_pruner import __version__

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = ("llava", "Qwen2VL_VLMPruner", "playground")


def build(kind: str, source: Path, out: Path) -> Path:
    """What `pip wheel` and `python -m build` do, without a new environment for the backend."""
    out.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone's small files."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ":!fig", ":!playground", ":!docs"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("the files to build from are those that git tracks, and this is no clone")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("wheel", source, source.with_name("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    folder = wheel.with_name("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, cwd: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter that finds `vlm_pruner` in the wheel and none of the names of a clone."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({NOT_OURS}))\n"
    variables = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **environment}
    variables.pop("VLM_PRUNER_CLONE", None) if "VLM_PRUNER_CLONE" not in environment else None
    return subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=cwd, env=variables, capture_output=True, text=True
    )


def command(*arguments: str) -> str:
    return f"from vlm_pruner.cli import main; sys.exit(main({list(arguments)!r}))"


def test_the_wheel_installs_vlm_pruner_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        names = set(archive.namelist())
    assert tops == {"vlm_pruner", f"vlm_pruner-{__version__}.dist-info"}
    assert {"vlm_pruner/py.typed", "vlm_pruner/web/page.css", "vlm_pruner/llava/model/builder.py"} <= names
    assert any(name.startswith("vlm_pruner/report/page/") for name in names)
    assert wheel.stat().st_size < 2**20


def test_every_file_of_the_package_is_in_the_wheel(source: Path, installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in (folder / "vlm_pruner").rglob("*") if path.is_file()}

    assert files(source) == files(installed)


def test_the_source_archive_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "setup.py"} <= {p.name for p in unpacked.iterdir()}
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path / "wheel")) as ours, zipfile.ZipFile(wheel) as theirs:
        assert set(ours.namelist()) == set(theirs.namelist())


def test_the_readme_of_a_registry_has_absolute_links(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    message = HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)]+)\)", message.get_payload())
    assert len(links) > 10 and all(link.startswith("https://") for link in links)
    assert any("raw.githubusercontent.com" in link and link.endswith("fig/kept.png") for link in links)
    assert "Repository" in " ".join(message.get_all("Project-URL"))


def test_the_command_answers_at_once(installed: Path, tmp_path: Path) -> None:
    """Help and version import nothing heavy: the time itself is measured, and only reported, in a busy CI."""
    for arguments, expected in (("--help", "COMMAND"), ("--version", f"vlm-pruner {__version__}")):
        code = f"sys.argv[1:] = [{arguments!r}]\nimport atexit, runpy\n"
        code += "heavy = ('torch', 'transformers', 'numpy', 'PIL')\n"
        code += "atexit.register(lambda: print('heavy:', [name for name in heavy if name in sys.modules]))\n"
        began = time.perf_counter()
        done = run(installed, tmp_path, code + "runpy.run_module('vlm_pruner', run_name='__main__')")
        print(f"vlm-pruner {arguments}: {time.perf_counter() - began:.2f} s")
        assert done.returncode == 0 and expected in done.stdout and "heavy: []" in done.stdout, done.stderr


def test_without_a_clone_the_embedded_model_is_named_first(installed: Path, tmp_path: Path) -> None:
    """One sentence with both remedies, before torch is imported."""
    for arguments in (["ask", "a.png", "--question", "What?"], ["compare"], ["demo-run"], ["ablate"]):
        code = "import atexit\natexit.register(lambda: print('torch' in sys.modules))\n"
        done = run(installed, tmp_path, code + command(*arguments))
        assert done.returncode == 2 and done.stdout == "False\n", done.stderr
        (line,) = done.stderr.splitlines()
        assert "--model" in line and "VLM_PRUNER_CLONE" in line and "git clone" in line


def test_a_clone_named_by_the_environment_gives_the_embedded_model(installed: Path, tmp_path: Path) -> None:
    code = "from vlm_pruner.experiments.mini import CHECKPOINT, check_checkpoint\n"
    code += "check_checkpoint(CHECKPOINT)\nprint(CHECKPOINT)"
    done = run(installed, tmp_path, code, VLM_PRUNER_CLONE=str(ROOT))
    assert done.stdout.strip() == str(ROOT / "playground" / "mini" / "checkpoint"), done.stderr


def test_a_clone_that_the_command_runs_in_gives_the_embedded_model(installed: Path) -> None:
    """As after `pip install .`, whose command does not look for modules in the working folder."""
    code = "sys.path.remove('')\nimport vlm_pruner.experiments.mini as mini\n"
    code += "mini.check_checkpoint(mini.CHECKPOINT)\nprint(mini.__file__, mini.CHECKPOINT)"
    done = run(installed, ROOT, code)
    assert done.stdout.split() == [
        str(installed / "vlm_pruner" / "experiments" / "mini.py"), str(ROOT / "playground" / "mini" / "checkpoint")
    ], done.stderr  # fmt: skip


def test_a_wheel_below_a_foreign_repository_claims_no_commit(installed: Path) -> None:
    subprocess.run(["git", "init", "-q", "."], cwd=installed.parent, check=True)
    done = run(installed, installed.parent, "from vlm_pruner.provenance import git_hash; print(git_hash())")
    assert done.stdout == "None\n", done.stderr


def test_the_wheel_answers_about_a_picture(installed: Path, tmp_path: Path) -> None:
    """`ask` with checkpoints in both layouts; no module of a clone is needed."""
    photo = ROOT / "playground" / "photos" / "cat.jpg"
    question = ["ask", str(photo), "--question", "what is left of the disc", "--max-new-tokens", "2", "--no-cells"]
    model = ROOT / "playground" / "mini" / "checkpoint"
    done = run(installed, tmp_path, command(*question, "--model", str(model), "--out", str(tmp_path / "kept")))
    assert done.returncode == 0 and "64 of 576" in done.stdout, done.stderr
    assert (tmp_path / "kept" / "kept.png").is_file()
