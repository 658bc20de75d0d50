"""A short form of ``make soak``: a whole installation, broken at random, and every message counted.

A failure prints the seed and the broken promises; ``python -m tests.soak --seed N`` repeats the
faults.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import soak


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    report = await soak(tmp_path, 13, seconds=45, most=6, users=8)
    assert report.broken == []
    assert report.published > 100
    assert report.accepted > 100
    assert report.received >= report.published
