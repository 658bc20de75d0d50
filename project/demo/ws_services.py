"""The demonstration's service, which answers what the page at ``/demo/`` sends, and its rooms."""

from __future__ import annotations

import asyncio

from django.utils import timezone

from wsgateway import Message, Reject, RetryPolicy, service, topic
from wsgateway.identity import Identity

MAX_DELAY = 5.0
CRASH_ATTEMPTS = 3


class DemoBug(Exception):
    """What a mistake in a handler raises; it soon becomes a dead letter."""


@service("demo", retry={DemoBug: RetryPolicy(attempts=CRASH_ATTEMPTS, initial=0.5)})
async def assistant(message: Message) -> None:
    """Echo a text; ``/time``, ``/wait``, ``/refuse`` and ``/crash`` show what a service can do."""
    command, _, argument = message.text.partition(" ")
    if command == "/time":
        answer = timezone.now().isoformat(timespec="seconds")
    elif command == "/wait":
        try:
            seconds = min(float(argument), MAX_DELAY)
        except ValueError as exc:
            raise Reject("give a number of seconds, for example /wait 2") from exc
        await asyncio.sleep(seconds)
        answer = f"waited {seconds:g} s"
    elif command == "/refuse":
        raise Reject("you asked for it", code="asked_for")
    elif command == "/crash":
        raise DemoBug("this message fails at every attempt")
    else:
        answer = f"echo: {message.text}"
    await message.reply(text=answer)


@topic("demo-room", direct=True, presence=True)
def room(identity: Identity, name: str) -> str | None:
    """Open the lobby to the demo's users.

    Nobody may read the private room: who has a token from `project.demo.rooms` is not asked for.
    """
    return "write" if identity.service == "demo" and name == "lobby" else None
