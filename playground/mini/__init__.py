"""The embedded model and its world: scenes, questions, training recipe, checkpoint and mini benchmarks."""
