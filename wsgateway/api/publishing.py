"""Publishing: one message, or many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2s
from typing import Annotated, cast

from django.http import HttpRequest
from ninja import Router
from ninja.params.functions import Header

from wsgateway.api.admission import charge, key_of, needs, require
from wsgateway.api.problems import Problem, in_body, invalid, problem_of
from wsgateway.api.replays import checked
from wsgateway.api.responses import with_problems
from wsgateway.api.schemas import (
    IDEMPOTENCY_KEY,
    Batch,
    ProblemDocument,
    Publication,
    Receipt,
    Result,
    Results,
    Unusable,
)
from wsgateway.exceptions import PartlySent, WsGatewayError
from wsgateway.models import ApiKey
from wsgateway.publish import AnyOutgoing, Outcome, asend_many
from wsgateway.tracing import find_tracer

__all__ = ["router"]

router = Router(tags=["publish"])
ACTION = "publish"

IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        pattern=IDEMPOTENCY_KEY,
        description="The same as `msg_id`. Give one of them, or the same in both.",
    ),
]


BatchKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        pattern=IDEMPOTENCY_KEY,
        description="Names the batch. A message with a `msg_id` of its own goes by that.",
    ),
]


def _own_id(key: ApiKey, *parts: str | int) -> str:
    """Return an id that no other key, and no code of the project, gives to a message."""
    return ".".join(("api", key.prefix, *map(str, parts)))


def _unquoted(header: str) -> str:
    """Return the value of the header ``Idempotency-Key``, which may be in quotes."""
    return header.strip('"')


@router.post(
    "publish",
    **needs(ACTION),
    summary="Publish a message",
    operation_id="publish",
    response=with_problems({200: Receipt}, body=True),
)
async def publish(
    request: HttpRequest,
    message: Publication,
    idempotency_key: IdempotencyKey = "",
) -> Receipt:
    """Store a message for a user or in a topic. The answer comes once it is safe.

    If there is no answer, or the status is 503, it may or may not be stored. Send it again with the
    same `msg_id`: it is stored once, and the answer says `"duplicate": true`. If the first message
    with that id is another one, you get 422 and `id-reused`, as long as that one is stored.

    With tracing on, the message continues the trace in the header `traceparent`.
    """
    key = require(request, ACTION, message.service)
    given = _unquoted(idempotency_key)
    if given and message.has("msg_id") and given != message.msg_id:
        text = "msg_id and the header Idempotency-Key differ; give one of them"
        raise Problem("invalid", text)
    msg_id = message.msg_id or given
    outgoing = message.outgoing(_own_id(key, "m", msg_id) if msg_id else None)
    [outcome] = await _send(request, [outgoing])
    return _receipt(outcome)


def _receipt(outcome: Outcome) -> Receipt:
    """Return what is told about a message.

    Raises:
        Problem: It is not stored.
    """
    if isinstance(outcome, (TypeError, ValueError)) and not isinstance(outcome, WsGatewayError):
        raise Problem("invalid", str(outcome))  # an argument that only `wsgateway.send` refuses
    if isinstance(outcome, Exception):
        raise problem_of(outcome)
    return Receipt(offset=outcome.offset, duplicate=outcome.duplicate)


@router.post(
    "publish-many",
    **needs(ACTION),
    summary="Publish many messages",
    operation_id="publish_many",
    exclude_unset=True,
    response=with_problems({200: Results}, body=True, service=False),
)
async def publish_many(
    request: HttpRequest, batch: Batch, idempotency_key: BatchKey = ""
) -> Results:
    """Store up to 1,000 messages. One that fails does not stop the others.

    The answer has a receipt or a problem for each message, in their order. With the header
    `Idempotency-Key`, you can send the same batch again: what is stored is not stored twice. A
    batch with other messages is another one, whatever its header says.
    Messages for the same user or topic keep their order.
    """
    key = key_of(request)
    charge(key, len(batch.messages) - 1)  # the request itself has cost one
    header = _unquoted(idempotency_key)
    batch_id = f"{header}.{_digest(batch)}" if header else ""
    results: dict[int, Result] = {}
    outgoing: dict[int, AnyOutgoing] = {}
    for index, message in enumerate(batch.messages):
        try:
            outgoing[index] = _prepare(request, message, batch_id and (batch_id, index))
        except Problem as exc:
            results[index] = _failure(exc)
    outcomes = await _send(request, [*outgoing.values()])
    for index, outcome in zip(outgoing, outcomes, strict=True):
        try:
            results[index] = Result(**_receipt(outcome).model_dump())
        except Problem as exc:
            results[index] = _failure(exc)
    found = [results[index] for index in range(len(batch.messages))]
    return Results(results=found, failed=sum(each.has_failed for each in found))


def _digest(batch: Batch) -> str:
    """Return what tells a batch from others: a part of it has other messages at its places."""
    found = blake2s(digest_size=16)
    for message in batch.messages:
        usable = not isinstance(message, Unusable)
        text = message.model_dump_json(exclude_unset=True) if usable else "-"
        found.update(f"{text}\n".encode())
    return found.hexdigest()


def _prepare(
    request: HttpRequest, message: Publication | Unusable, part: tuple[str, int] | str
) -> AnyOutgoing:
    """Return a message of a batch as `wsgateway.send_many` takes it.

    Args:
        request: Whose.
        message: What the batch has.
        part: The batch's id and the message's place, if there is an id.

    Raises:
        Problem: It cannot be sent.
    """
    if isinstance(message, Unusable):
        raise invalid([in_body(each["loc"], each["msg"]) for each in message.errors])
    key = require(request, ACTION, message.service)
    own_id = None
    if message.has("msg_id"):
        own_id = _own_id(key, "m", message.msg_id)
    elif part:
        own_id = _own_id(key, "b", *part)
    return message.outgoing(own_id)


async def _send(request: HttpRequest, messages: Sequence[AnyOutgoing]) -> list[Outcome]:
    """Send, and return an outcome for each message, even if the broker is lost halfway."""
    with _tracing(request):
        try:
            outcomes = await asend_many(messages)
        except PartlySent as exc:
            known = [
                each if type(each) is not WsGatewayError else exc.error for each in exc.outcomes
            ]
            unread = len(messages) - len(known)
            outcomes = [*cast(list[Outcome], known), *[exc.error] * unread]
        return await checked(messages, outcomes)


def _tracing(request: HttpRequest) -> AbstractContextManager[None]:
    """Let messages continue the trace that *request* belongs to, if this process traces."""
    tracer = find_tracer()
    return nullcontext() if tracer is None else tracer.continuing_request(request.headers)


def _failure(problem: Problem) -> Result:
    return Result(problem=ProblemDocument(**problem.document))
