#!/usr/bin/env bash
# Creates the project's environment in .venv/, or does nothing if it is up to date.
#
#   bash scripts/setup_env.sh                    # python3 from the PATH
#   PYTHON=python3.12 bash scripts/setup_env.sh  # another interpreter
#
# The last step writes a stamp with a hash of the environment's inputs. An interrupted set-up, or one from an older
# pyproject.toml, therefore runs again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp="$venv/.vlm-pruner-stamp"
python="${PYTHON:-python3}"

if ! command -v "$python" >/dev/null; then
    echo "setup: no interpreter named '$python'; install Python 3.10 or newer, or set PYTHON=/path/to/python3" >&2
    exit 1
fi
if ! version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))')"; then
    echo "setup: '$python' is Python $version; 3.10 or newer is needed, for example PYTHON=python3.11" >&2
    exit 1
fi

# The folder is part of the key: a virtual environment does not survive being moved.
wanted="$({ pwd; echo "$version"; cat pyproject.toml constraints.txt; } | "$python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && "$venv/bin/python" -c 'pass' 2>/dev/null; then
    exit 0
fi

echo "setup: creating $venv with Python $version (a few minutes the first time)"
rm -f "$stamp"
# A half-made environment can lack pip or contain a dead interpreter; recreate it. Bring any other up to date.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    [[ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
echo "$wanted" >"$stamp"
echo "setup: done in ${SECONDS} s"
