"""What an endpoint's answer means for the message. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple

from wsgateway.protocol.strict_json import loads

__all__ = ["Answer", "Gone", "Refusal", "Reply", "TryAgain", "Verdict", "judge"]

REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
"""Only these say that the message is wrong. A 404 may be a bad deploy, which must lose nothing."""


class Answer(NamedTuple):
    """What an endpoint answered.

    Attributes:
        status: The status code.
        headers: By name in lower case.
        body: Empty if there is none, or it has a `problem`.
        problem: Why the body cannot be used; empty if it can.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    problem: str = ""


class Reply(NamedTuple):
    """The message was handled; *text* is the reply, which is JSON. None: there is none."""

    text: str | None


class Refusal(NamedTuple):
    """The message is wrong and stays so; the client is told."""

    code: str
    reason: str


class TryAgain(NamedTuple):
    """Post it again; *after* so many seconds. None: as the retry policy says."""

    reason: str
    after: float | None = None


class Gone(NamedTuple):
    """The endpoint does not exist any more."""


Verdict = Reply | Refusal | TryAgain | Gone


def judge(answer: Answer, now: float) -> Verdict:
    """Return what *answer* means.

    Args:
        answer: Of the endpoint.
        now: Unix time, for a ``Retry-After`` that is a date.
    """
    status = answer.status
    if 200 <= status < 300:
        return _reply(answer)
    if status in REFUSALS:
        return _refusal(answer)
    if status == HTTPStatus.GONE:
        return Gone()
    where = ", a redirect, which is not followed" if 300 <= status < 400 else ""
    return TryAgain(f"it answered {status}{where}", _after(answer.headers, now))


def _reply(answer: Answer) -> Verdict:
    if not answer.problem and not answer.body.strip():
        return Reply(None)
    problem = answer.problem
    if not problem:
        try:
            loads(answer.body)
            return Reply(answer.body.decode("utf-8-sig").strip())
        except (ValueError, RecursionError):
            problem = "is not JSON; to send no reply, answer 204"
    return TryAgain(f"it answered {answer.status}, but the body {problem}")


def _refusal(answer: Answer) -> Refusal:
    """Return the code and the reason that a problem document (RFC 9457) has."""
    problem: Any = None
    if answer.body:
        with suppress(ValueError, RecursionError):
            problem = loads(answer.body)
    problem = problem if isinstance(problem, Mapping) else {}
    code = _first_text(problem, "code") or "rejected"
    default = f"the service refused the message ({answer.status})"
    return Refusal(code, _first_text(problem, "detail", "title") or default)


def _first_text(problem: Mapping[str, Any], *names: str) -> str:
    found = (problem.get(name) for name in names)
    return next((text for text in found if isinstance(text, str) and text.strip()), "")


def _after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that ``Retry-After`` asks for; None without, or if they are over."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        after = float(text[:12])
    else:
        try:
            date = parsedate_to_datetime(text)
            if date.tzinfo is None:  # "-0000", or none at all: it is not the time of this machine
                date = date.replace(tzinfo=UTC)
            after = date.timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return after if after > 0 else None
