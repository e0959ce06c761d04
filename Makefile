# The steps of CI one by one; `bash scripts/test.sh` creates the environment and runs them all.
PYTHON ?= .venv/bin/python

.PHONY: format check test test-vllm test-zero3 bench-check docs clean

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check:
	VENV_PYTHON=$(PYTHON) bash scripts/check.sh

test:
	$(PYTHON) -m pytest -n auto

test-vllm:
	bash scripts/test_vllm.sh

test-zero3:
	bash scripts/test_zero3.sh

bench-check:
	$(PYTHON) benchmarks/bench_check.py

docs:
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "docs: build/docs/index.html"

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache *.egg-info
