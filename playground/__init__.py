"""Data and models to play with: `mini/` is embedded, `data/eval/` is where downloaded benchmarks go."""
