"""What gateways tell each other about revoked sockets: any bytes close a socket, or none."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from wsgateway.broker.memory import MemoryBroker
from wsgateway.gateway.revocation import TOPIC, Notice, Revocations

words = st.sampled_from([*(notice.value for notice in Notice), "x" * 64, "", "junk", " ", "\n"])


@given(st.binary(max_size=60) | st.lists(words, max_size=8).map(lambda w: " ".join(w).encode()))
def test_any_notice_is_read_or_skipped(payload: bytes) -> None:
    async def take() -> None:
        broker = MemoryBroker()
        await broker.open()
        Revocations(broker).listen()
        broker.broadcast(TOPIC, payload)
        await broker.close()

    asyncio.run(take())
