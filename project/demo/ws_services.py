"""The demonstration's service: answers what the page at ``/`` sends."""

from __future__ import annotations

import asyncio

from django.utils import timezone

from wsgateway import Message, Reject, service

MAX_DELAY = 5.0


@service("demo")
async def assistant(message: Message) -> None:
    """Echo a text; ``/time``, ``/wait SECONDS`` and ``/fail`` show what a service can do."""
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
    elif command == "/fail":
        raise Reject("you asked for it", code="asked_for")
    else:
        answer = f"echo: {message.text}"
    await message.reply(text=answer)
