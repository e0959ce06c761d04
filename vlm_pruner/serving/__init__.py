"""Pruning inside a serving engine, as far as it needs no engine: wishes, budgets and positions."""
