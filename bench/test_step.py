"""Times one step in every case, and of every peer: see gdm.bench.cases."""

from __future__ import annotations

import pytest

from gdm.bench import suite


@pytest.mark.parametrize("case", suite(), ids=lambda case: case.id.replace(" ", "-"))
def test_step(compare, case):
    """Every peer's result is checked against the reference before it is timed."""
    result = compare(case)
    assert result.ours.median > 0
    assert len(result.ours.rounds) >= 7
