"""The soak with one server, whose streams are replaced and lose their end, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import soak


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_nothing_is_lost_in_silence(tmp_path: Path) -> None:
    report = await soak(tmp_path, 22, seconds=45, most=6, servers=1, users=8)
    assert report.broken == []
    assert report.published > 100
    assert report.accepted > 100
