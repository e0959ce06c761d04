"""Reports what a run of lmms-eval lacks here, before it starts: `python -m vlm_pruner.lmms.check --help`.

Does not import lmms-eval, which would take longer than all the checks, and uses no network. Downloadable files count as
missing only if Hugging Face's variables mark this machine as offline.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

MISSING = 2  # exit code

_FILES = ("json", "csv", "parquet", "text", "imagefolder")  # builders for local files, which the task names
_TRUE = ("1", "ON", "YES", "TRUE")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="checkpoint folder or Hub name")
    parser.add_argument("--tasks", required=True, help="names of lmms-eval's tasks, separated by commas")
    parser.add_argument("--include-path", type=Path, default=None, help="folder of further tasks")
    args = parser.parse_args(argv)
    found = [*missing(args.model_path, args.tasks.split(","), args.include_path, os.environ)]
    for line in found:
        print(f"missing: {line}")
    return MISSING if found else 0


def missing(model: str, tasks: Sequence[str], include: Path | None, environment: Mapping[str, str]) -> Iterator[str]:
    """One line per missing thing, with the remedy."""
    yield from _missing_packages()
    yield from _missing_model(model, environment)
    package = find_spec("lmms_eval")
    folders = [] if include is None else [include]
    if package is not None and package.submodule_search_locations:
        folders.append(Path(package.submodule_search_locations[0]) / "tasks")
    elif include is None:
        return
    yield from _missing_tasks(tasks, folders, environment)


def _missing_packages() -> Iterator[str]:
    if find_spec("lmms_eval") is None:
        yield "lmms_eval is not installed here; pip install 'vlm-pruner[lmms-eval]', best in an environment of its own"
    if find_spec("accelerate") is None:
        yield "accelerate is not installed here; pip install accelerate"


def _missing_model(model: str, environment: Mapping[str, str]) -> Iterator[str]:
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            yield f"{model} has no config.json, so it is no checkpoint; choose another with MODEL"
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model):
        yield f"there is no checkpoint {model}; choose another with MODEL"
    elif is_offline(environment, "HF_HUB_OFFLINE") and not _in_hub(f"models--{model}", environment):
        yield f"checkpoint {model} is not in {_hub(environment)}, and HF_HUB_OFFLINE is set; choose another with MODEL"


def _missing_tasks(tasks: Sequence[str], folders: Sequence[Path], environment: Mapping[str, str]) -> Iterator[str]:
    offline = is_offline(environment, "HF_DATASETS_OFFLINE") or is_offline(environment, "HF_HUB_OFFLINE")
    for task in tasks:
        file = _find_task(task, folders)
        if file is None:
            yield f"no task {task} in {' or '.join(map(str, folders))}"
        elif members := _members(file):
            yield from _missing_tasks(members, folders, environment)
        elif offline and (data := data_of(file)) is not None and not _have_data(data, environment):
            yield (
                f"the data of {task}, {data}, are not in Hugging Face's cache ({_hub(environment)}, "
                f"{_datasets(environment)}), and this machine is offline; run once online, or copy the cache"
            )


def _find_task(task: str, folders: Sequence[Path]) -> Path | None:
    """The YAML that defines a task. Most are named after it; searches the others."""
    files = [file for folder in folders for file in folder.rglob("*.yaml")]
    files.sort(key=lambda file: file.stem != task)  # stable sort: likely ones first
    names = re.compile(rf"""^(task|group):\s*["']?{re.escape(task)}["']?\s*$""", re.MULTILINE)
    return next((file for file in files if names.search(file.read_text(encoding="utf-8"))), None)


def _members(file: Path) -> list[str]:
    """The tasks of a group; empty if the file defines a single task."""
    text = file.read_text(encoding="utf-8")
    if re.search(r"^group:", text, re.MULTILINE) is None:
        return []
    return re.findall(r"^\s*-\s*([\w-]+)\s*$", text, re.MULTILINE)


def data_of(file: Path) -> str | None:
    """The Hub name of a task's data, from its YAML or an included one. None for local files."""
    text = file.read_text(encoding="utf-8")
    found = re.search(r"""^dataset_path:\s*["']?([^\s"']+)""", text, re.MULTILINE)
    if found is not None:
        name = found.group(1)
        return None if name in _FILES or (file.parent / name).exists() or Path(name).exists() else name
    included = re.search(r"""^include:\s*["']?([^\s"']+)""", text, re.MULTILINE)
    return data_of(file.parent / included.group(1)) if included is not None else None


def _have_data(name: str, environment: Mapping[str, str]) -> bool:
    """Whether the data are downloaded, or prepared by `datasets`, which spells names in its own way."""
    if _in_hub(f"datasets--{name}", environment):
        return True
    folder = _datasets(environment)
    return folder.is_dir() and _letters(name) in {_letters(entry.name) for entry in folder.iterdir()}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _in_hub(name: str, environment: Mapping[str, str]) -> bool:
    return (_hub(environment) / name.replace("/", "--") / "snapshots").is_dir()


def _hub(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HF_HUB_CACHE") or _home(environment) / "hub")


def _datasets(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HF_DATASETS_CACHE") or _home(environment) / "datasets")


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HF_HOME") or "~/.cache/huggingface").expanduser()


def is_offline(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").upper() in _TRUE


if __name__ == "__main__":
    raise SystemExit(main())
