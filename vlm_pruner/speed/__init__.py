"""Timing at true shapes: models, workloads, clocks and what the timings say."""
