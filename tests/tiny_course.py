"""Lessons of the embedded model's course small enough for a test: two scenes on 8 x 8 patches."""

from __future__ import annotations

from playground.mini.course import Teaching, Topic

SMALL = Topic(8, (2, 2), 1, (0, 0), {"relation": 2, "attribute": 3, "count": 2, "reading": 1, "choice": 2})
TINY = Teaching({8: 1.0}, {8: (SMALL,) * 2}, blind=0.3, noun_blind=0.6)
