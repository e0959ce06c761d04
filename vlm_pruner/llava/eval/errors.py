"""The two kinds of bad input: one stops the run before it starts, the other is recorded and the run continues."""

from __future__ import annotations


class UsageError(ValueError):
    """The request is impossible; one line that names the value and the remedy. Exit code 2."""


class ItemError(ValueError):
    """One item cannot be asked; the text is recorded in its answer line and the run continues."""
