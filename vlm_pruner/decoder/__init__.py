"""Everything that happens inside a running decoder, and nothing else."""
