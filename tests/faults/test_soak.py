"""A short form of ``make soak``: a whole installation, broken at random, and every message counted.

A failure prints the seed and the broken promises; ``python -m tests.soak --seed N`` repeats the
faults.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import soak


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("servers", "seed"), [(3, 1), (3, 13), (1, 22)])
async def test_nothing_acknowledged_is_lost(servers: int, seed: int, tmp_path: Path) -> None:
    report = await soak(tmp_path, seed, seconds=60, most=8, servers=servers, users=8)
    print(f"seed {seed}\n{report}")
    assert report.broken == []
    assert report.published > 100
    assert report.accepted > 100
    assert report.received >= report.published
