"""Callers that wait for the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from wsgateway.client.errors import GatewayError

__all__ = ["Calls"]

T = TypeVar("T")


class _Call(Generic[T]):
    """A result that has not arrived, and how many callers wait for it."""

    __slots__ = ("callers", "result")

    def __init__(self) -> None:
        self.callers = 0
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()


class Calls(Generic[T]):
    """Results by the id of a message; several callers may wait for the same one.

    Args:
        on_left: Called with an id when its last caller leaves, with or without a result.
    """

    def __init__(self, on_left: Callable[[str], None]) -> None:
        self._on_left = on_left
        self._calls: dict[str, _Call[T]] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._calls

    @contextlib.contextmanager
    def joined(self, id: str) -> Iterator[asyncio.Future[T]]:
        """Yield the future of the result. Callers share it, so await it shielded."""
        call = self._calls.setdefault(id, _Call())
        call.callers += 1
        try:
            yield call.result
        finally:
            call.callers -= 1
            if not call.callers:
                del self._calls[id]
                if not call.result.cancel() and not call.result.cancelled():
                    call.result.exception()  # retrieved, so asyncio does not warn
                self._on_left(id)

    def resolve(self, id: str, result: T | GatewayError) -> None:
        """Set the result of *id*, if anybody waits for it."""
        call = self._calls.get(id)
        if call is None or call.result.done():
            return
        if isinstance(result, GatewayError):
            call.result.set_exception(result)
        else:
            call.result.set_result(result)
