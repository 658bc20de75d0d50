"""What projects override is called so that it cannot leave a caller waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wsgateway.hooks import call_hook


async def test_stop_iteration_of_a_synchronous_hook_arrives() -> None:
    """On Python 3.11, no future takes it: a handshake, or a subscribe, waited for ever."""

    def first(names: list[str]) -> str:
        return next(iter(names))

    async with asyncio.timeout(5):
        assert await call_hook(first, ["ann"]) == "ann"
        with pytest.raises(RuntimeError, match=r"first .* raised StopIteration"):
            await call_hook(first, [])


async def test_synchronous_hook_may_return_what_is_awaited() -> None:
    async def answer() -> str:
        return "read"

    def hook(*args: Any) -> Any:
        return answer()

    assert await call_hook(hook) == "read"
