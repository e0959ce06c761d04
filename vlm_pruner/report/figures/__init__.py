"""The figures in `fig/`, each by one command: `python -m vlm_pruner.report.figures NAME`."""
