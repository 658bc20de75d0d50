"""How long a client has to end its side after the gateway has closed its own."""

from __future__ import annotations

import asyncio

import pytest
from pytest_django.fixtures import Settings

from wsgateway.gateway import transport
from wsgateway.gateway.transport import Linger


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LINGER", 0.1)


async def time_to_cut(pending: list[int]) -> float:
    """Return the seconds until the cut; *pending* says what waits, and its last value stays."""
    loop = asyncio.get_running_loop()
    cut, began = asyncio.Event(), loop.time()
    Linger(lambda: pending.pop(0) if len(pending) > 1 else pending[0], cut.set)
    await asyncio.wait_for(cut.wait(), 10)
    return loop.time() - began


async def test_client_that_has_everything_is_cut_after_a_second() -> None:
    assert 0.1 <= await time_to_cut([0]) < 5


async def test_client_that_takes_nothing_is_cut_after_a_second() -> None:
    assert 0.1 <= await time_to_cut([5]) < 5


async def test_client_that_makes_progress_is_not_cut() -> None:
    """Uvicorn's was, a second after the close frame was written behind all that waited."""
    assert 0.4 <= await time_to_cut([3, 2, 1, 0]) < 5


async def test_client_that_makes_little_progress_is_cut_in_time(settings: Settings) -> None:
    settings.WSGATEWAY_CLOSE_TIMEOUT = 0.35
    assert 0.35 <= await time_to_cut(list(range(100, 0, -1))) < 5


async def test_client_that_answers_is_not_cut() -> None:
    cut = asyncio.Event()
    Linger(lambda: 0, cut.set).cancel()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cut.wait(), 0.3)
