"""What pages ask the broker: several questions at once, within one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Connection
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerMisconfigured, WsGatewayError

__all__ = ["DEADLINE", "Answers", "Question", "ask"]

Question = Callable[[Broker], Awaitable[Any]]

READY = 1.0
"""Seconds that the broker may take to become ready."""
DEADLINE = 2.0
"""Seconds that all lookups of a page may take together, the connection included. Presence waits for
up to a second for a process that does not answer, and then names it."""


@dataclass(slots=True)
class Answers:
    """What is known, and why the rest is not.

    Attributes:
        values: The answer to each question by its name; None: unknown.
        problems: What went wrong, for the operator.
    """

    values: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """Return the answer to the question *name*; None: unknown."""
        return self.values[name]

    def get(self, name: str) -> Any:
        """Return the answer to the question *name*; None: unknown, or not asked."""
        return self.values.get(name)

    def add_problem(self, text: str) -> None:
        """Show *text* on the page, once."""
        if text not in self.problems:
            self.problems.append(text)


def ask(**questions: Question) -> Answers:
    """Ask everything at once, and wait `DEADLINE` seconds for all of it together.

    Whatever the broker does, the page is shown: see `Answers`.

    Args:
        **questions: Coroutine functions that get the broker; they run in its loop.
    """
    answers = Answers(dict.fromkeys(questions))
    try:
        connection = runtime.background()
    except WsGatewayError as exc:  # the settings name no usable broker
        answers.add_problem(str(exc))
    else:
        connection.call_sync(lambda: _ask(connection, questions, answers))
    return answers


async def _ask(connection: Connection, questions: Mapping[str, Question], answers: Answers) -> None:
    deadline = asyncio.get_running_loop().time() + DEADLINE
    broker = connection.broker
    try:
        await connection.open()
        await broker.wait_ready(min(READY, settings.BROKER_TIMEOUT))
    except BrokerMisconfigured as exc:  # what does not depend on that can still be shown
        answers.add_problem(str(exc))
        if not broker.connected:
            return
    except WsGatewayError as exc:
        answers.add_problem(str(exc))
        return
    await asyncio.gather(
        *(
            _answer(name, question, broker, deadline, answers)
            for name, question in questions.items()
        )
    )


async def _answer(
    name: str, question: Question, broker: Broker, deadline: float, answers: Answers
) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            answers.values[name] = await question(broker)
    except TimeoutError:
        answers.add_problem(f"{name.replace('_', ' ')}: no answer within {DEADLINE:g} s")
    except WsGatewayError as exc:
        answers.add_problem(str(exc))
