"""Timing at true shapes: models, workloads, clocks, and summaries of the timings."""
