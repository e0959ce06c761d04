"""Adapters, one file per model family. `find(model)` gives the one for a model's class."""
