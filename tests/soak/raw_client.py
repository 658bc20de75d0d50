"""A process of raw sockets: ``python -m tests.soak.raw_client LEDGER URL DEVICE USER...``.

They only read. Each connection has a number, because a raw socket promises less across them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import websockets.asyncio.client
import websockets.exceptions

from tests.soak.ledger import Ledger

SLOW = float(os.environ.get("SOAK_SLOW", "0"))
SERVICE = "soak"
_numbers = itertools.count(os.getpid() * 1_000_000)


async def read(ledger: Ledger, url: str, device: str, user: str) -> None:
    """Connect, read, come back, until cancelled."""
    headers = {"Cookie": f"service={SERVICE}; user={user}"}
    target = f"{url}/ws/{SERVICE}/{user}/?device={device}"
    while True:
        number = next(_numbers)
        try:
            async with websockets.asyncio.client.connect(
                target, additional_headers=headers, proxy=None, max_queue=4, ping_timeout=4
            ) as socket:
                ledger.note("open", user=user, device=device, connection=number)
                async for data in socket:
                    fields = json.loads(data)
                    if "n" in fields:
                        ledger.note(
                            "raw", user=user, device=device, n=fields["n"], connection=number
                        )
                    if SLOW:
                        await asyncio.sleep(SLOW)
        except (OSError, TimeoutError, websockets.exceptions.WebSocketException):
            pass
        await asyncio.sleep(0.2)


async def main(path: Path, url: str, device: str, users: list[str]) -> None:
    """Run until SIGINT."""
    ledger = Ledger(path)
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, end.set)
    ledger.note("begin", users=users, device=device)
    tasks = [asyncio.create_task(read(ledger, url, device, user)) for user in users]
    await end.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    ledger.note("end")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
