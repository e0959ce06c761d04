"""The benchmark of calibration's cost: its rows compare each calibrated arm with its own method."""

from __future__ import annotations

import json

import pytest

from benchmarks import calibration_cost


def test_a_row_is_the_ratio_to_the_same_method(capsys: pytest.CaptureFixture[str]) -> None:
    times = {"dense": [9.0, 9.0], "dart": [1.0, 2.0], "dart:calibrate=size": [1.5, 3.0]}
    (row,) = calibration_cost.report(times)
    assert (row["method"], row["calibrate"]) == ("dart", "size")
    assert row["value"] == row["low"] == row["high"] == pytest.approx(50)


def test_it_times_every_calibration_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", "tiny", "--visual", "16", "--keep", "4", "--rounds", "2", "--text", "6"]
    calibration_cost.main([*small, "--methods", "vlm-pruner,divprune:layer=1"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(json.loads(last)["rows"]) == 4 and all(" % [" in line for line in lines)
