"""The topics and the service of the soak: each try is noted in SOAK_SERVICE_LEDGER's file."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from tests.soak import stacks
from tests.soak.ledger import Ledger
from wsgateway import Message, RetryPolicy, service, topic
from wsgateway.identity import Identity

if "SOAK_SERVICE_LEDGER" in os.environ and "runservice" in sys.argv:
    stacks.install()


@cache
def ledger() -> Ledger:
    return Ledger(Path(os.environ["SOAK_SERVICE_LEDGER"]))


@topic("lounge", direct=True)
def lounge(identity: Identity, name: str) -> str:
    """Let everybody read, and users write to the topic of their name."""
    return "write" if name == identity.user else "read"


@service("soak", retry=RetryPolicy(attempts=50, initial=0.1, cap=1.0))
async def soak(message: Message) -> None:
    """Note the try, let some fail the first time, and answer."""
    fields = message.json()
    ledger().note(
        "handling",
        user=message.user_name,
        device=fields["device"],
        n=fields["n"],
        offset=message.offset,
        attempt=message.attempt,
    )
    if fields["n"] % 50 == 7 and message.attempt == 1:
        raise RuntimeError("the first try fails")
    await message.reply(json={"re": fields["n"], "device": fields["device"]}, ttl=60)
    ledger().note("handled", user=message.user_name, device=fields["device"], n=fields["n"])
