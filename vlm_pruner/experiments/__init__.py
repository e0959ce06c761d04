"""Measuring: questions, arms that are compared, interleaved runs, statistics, and what a result file must hold."""
