# By hand what CI does in one go; `bash scripts/test.sh` makes the environment first and then runs `check` and `test`.
PYTHON ?= .venv/bin/python

.PHONY: format check test bench-check docs clean

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check:
	VENV_PYTHON=$(PYTHON) bash scripts/check.sh

test:
	$(PYTHON) -m pytest

bench-check:
	$(PYTHON) benchmarks/bench_check.py

docs:
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "docs: build/docs/index.html"

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache *.egg-info
