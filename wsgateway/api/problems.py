"""What goes wrong, as RFC 9457 problem documents, with the words of the exceptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponse, JsonResponse

from wsgateway.exceptions import (
    BrokerClosed,
    BrokerMisconfigured,
    BrokerUnavailable,
    MessageRefused,
    MessageTooBig,
    NameRefused,
    QueueFull,
    ServiceUnknown,
    reason_of,
)

__all__ = [
    "CONTENT_TYPE",
    "KINDS",
    "Kind",
    "Problem",
    "in_body",
    "invalid",
    "problem_of",
    "respond",
]

TYPE = "urn:problem-type:wsgateway:"
CONTENT_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """One kind of problem.

    Attributes:
        status: The HTTP status.
        title: What it is, the same each time.
        retry_after: Seconds after which the same request may succeed; 0: it will not.
    """

    status: int
    title: str
    retry_after: int = 0


KINDS = {
    "unreadable": Kind(400, "The body is not JSON"),
    "unauthorized": Kind(401, "A key is missing, wrong or revoked"),
    "forbidden": Kind(403, "The key may not do this"),
    "not-found": Kind(404, "There is nothing at this URL"),
    "service-unknown": Kind(404, "The service does not exist, or has no such users or topics"),
    "method-not-allowed": Kind(405, "This URL takes another method"),
    "length-required": Kind(411, "The request does not say how long its body is"),
    "too-large": Kind(413, "The body or a message is too large"),
    "not-json": Kind(415, "The body is not declared as JSON"),
    "invalid": Kind(422, "A value is not valid"),
    "id-reused": Kind(422, "The id was used for another message"),
    "too-many-requests": Kind(429, "The key is used too often", 1),
    "queue-full": Kind(429, "The stream is full", 5),
    "misconfigured": Kind(500, "An operator must act"),
    "broker-unavailable": Kind(503, "NATS does not answer", 1),
}
"""Every kind, by the last part of its ``type``."""

EXCEPTIONS: dict[type[Exception], str] = {
    BrokerUnavailable: "broker-unavailable",
    BrokerClosed: "broker-unavailable",
    BrokerMisconfigured: "misconfigured",
    QueueFull: "queue-full",
    MessageTooBig: "too-large",
    MessageRefused: "invalid",
    ServiceUnknown: "service-unknown",
    NameRefused: "invalid",
}
"""Which kind an exception is."""


class Problem(Exception):
    """A request, or one of its messages, that cannot be carried out.

    Args:
        kind: One of `KINDS`.
        detail: What happened, with which value, and what to do.
        headers: Of the response.
        more: Other members of the document.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail
        self.more = more
        after = KINDS[kind].retry_after
        self.headers = {**({"Retry-After": str(after)} if after else {}), **(headers or {})}

    @property
    def document(self) -> dict[str, Any]:
        """The document."""
        kind = KINDS[self.kind]
        return {
            "type": f"{TYPE}{self.kind}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            **self.more,
        }


def problem_of(error: Exception) -> Problem:
    """Return the problem that *error* is.

    Raises:
        Exception: *error*, if that is a fault of ours.
    """
    if isinstance(error, Problem):
        return error
    for known, kind in EXCEPTIONS.items():
        if isinstance(error, known):
            return Problem(kind, reason_of(error))
    raise error


def in_body(way: Iterable[str | int], text: str) -> dict[str, str]:
    """Return what is wrong with a value of the body, which *way* leads to."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in way)
    pointer = "#" + "".join(f"/{part}" for part in parts)
    return {"pointer": pointer, "detail": text.removeprefix("Value error, ")}


def invalid(values: Sequence[Mapping[str, str]]) -> Problem:
    """Return the problem that values are, see `in_body`; its text tells the first ones."""
    detail = "; ".join(": ".join(value.values()) for value in values[:3])
    return Problem("invalid", detail, errors=values)


def respond(request: HttpRequest, error: Exception) -> HttpResponse:
    """Return the response for *error*.

    Raises:
        Exception: *error*, if that is a fault of ours: Django logs and answers it.
    """
    problem = problem_of(error)
    return JsonResponse(
        problem.document,
        status=KINDS[problem.kind].status,
        headers={**problem.headers, "Cache-Control": "no-store"},
        content_type=CONTENT_TYPE,
    )
