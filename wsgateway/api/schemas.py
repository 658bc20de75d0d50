"""What the server API takes and returns, as the OpenAPI document shows it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from wsgateway.broker.messages import MAX_TTL, MIN_TTL
from wsgateway.outgoing import Outgoing, OutgoingTopic
from wsgateway.protocol.subjects import MAX_NAME_BYTES

__all__ = [
    "IDEMPOTENCY_KEY",
    "Batch",
    "Name",
    "ProblemDocument",
    "Publication",
    "Receipt",
    "Result",
    "Results",
    "Strict",
    "Unusable",
    "absent",
]

MAX_BATCH = 1000
"""Messages in one request."""

MAX_MEMBERS = 20
"""Members of an object in a body. Megabytes of unknown ones took seconds, in which nobody else was
served."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)]
MessageId = Annotated[str, Field(pattern=r"^[!-~]{1,255}$")]
Base64 = Annotated[
    str,
    Field(
        pattern=r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        json_schema_extra={"contentEncoding": "base64"},
    ),
]
IDEMPOTENCY_KEY = r'^(?:[!#-~]{0,255}|"[!#-~]{1,253}")$'
"""What the header of this name may be; RFC drafts put it into quotes, most clients do not."""

TARGETS = ("user", "topic")
PAYLOADS = ("text", "json", "base64")


def one_of(*names: str) -> dict[str, Any]:
    """Return the JSON schema of an object that has exactly one of *names*."""
    return {"oneOf": [{"required": [name]} for name in names]}


def absent() -> Any:
    """Return what a member has that is not given: null itself is not a value of it."""
    return None


class Strict(BaseModel):
    """A body, or a part of one: nothing is converted, and nothing is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, data: Any) -> Any:
        """Refuse at once what has far too many members: each unknown one has its own error."""
        if isinstance(data, dict) and len(data) > MAX_MEMBERS:
            known = ", ".join(field.alias or name for name, field in cls.model_fields.items())
            raise ValueError(f"{len(data)} members; there are only {known}")
        return data


class Publication(Strict):
    """A message for a user or a topic: exactly one of `text`, `json` and `base64`."""

    model_config = ConfigDict(
        json_schema_extra={
            "description": "A message for a user or a topic, with exactly one payload.",
            "allOf": [one_of(*TARGETS), one_of(*PAYLOADS)],
        },
    )

    service: Name = Field(description="The service of the user or topic.")
    user: Name = Field(default_factory=absent, description="The user's name.")
    topic: Name = Field(
        default_factory=absent,
        description="The topic's name within the service, without the service.",
    )
    text: str = Field(default_factory=absent, description="A text frame.")
    json_: Any = Field(
        default_factory=absent, alias="json", description="Anything; becomes a text frame."
    )
    base64: Base64 = Field(default_factory=absent, description="A binary frame, as base64.")
    msg_id: MessageId = Field(
        default_factory=absent,
        description="The same id is stored once for this key and user or topic, within "
        "`WSGATEWAY_DUPLICATE_WINDOW`. Another message with this id is refused.",
    )
    ttl: float = Field(
        default_factory=absent,
        ge=MIN_TTL,
        le=MAX_TTL,
        description="Seconds after which the message is gone.",
    )

    @model_validator(mode="after")
    def _check_choices(self) -> Publication:
        for names in (TARGETS, PAYLOADS):
            given = [name for name in names if self.has(name)]
            if len(given) != 1:
                choice = f"{', '.join(names[:-1])} or {names[-1]}"
                got = " and ".join(given) or "none"
                raise ValueError(f"pass exactly one of {choice} (got {got})")
        return self

    def has(self, name: str) -> bool:
        """Say whether the request has the member *name*."""
        return ("json_" if name == "json" else name) in self.model_fields_set

    def outgoing(self, msg_id: str | None) -> Outgoing | OutgoingTopic:
        """Return the message that `wsgateway.send_many` takes."""
        if self.has("text"):
            payload: dict[str, Any] = {"text": self.text}
        elif self.has("json"):
            payload = {"json": self.json_}
        else:
            payload = {"bytes": base64.b64decode(self.base64)}
        options = {**payload, "ttl": self.ttl if self.has("ttl") else None, "msg_id": msg_id}
        if self.has("topic"):
            return OutgoingTopic(self.service, self.topic, **options)
        return Outgoing(self.service, self.user, **options)


class Receipt(BaseModel):
    """Proof that a message is stored."""

    offset: int = Field(
        description="Its position in the inbox or topic; 0 in an ephemeral topic, which stores "
        "nothing."
    )
    duplicate: bool = Field(
        description="Whether its id was stored before; then the offset is the first one's."
    )


class InvalidValue(BaseModel):
    """A value that is not possible."""

    pointer: str = Field("", description="Where it is in the body, as a JSON pointer.")
    parameter: str = Field("", description="Which parameter of the query or header it is.")
    detail: str = Field(description="What is wrong with it.")


class ProblemDocument(BaseModel):
    """What went wrong, see RFC 9457."""

    type: str = Field(description="Which kind of problem it is.")
    title: str = Field(description="What that kind means.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What happened, and what to do.")
    errors: list[InvalidValue] = Field([], description="All values that are not possible.")


@dataclass(frozen=True)
class Unusable:
    """A message of a batch that is not a `Publication`; the others may be.

    Attributes:
        errors: What is wrong with it, as pydantic says it.
    """

    errors: list[Any]


def _keep_going(value: Any, handler: ValidatorFunctionWrapHandler) -> Publication | Unusable:
    try:
        return cast(Publication, handler(value))
    except ValidationError as exc:
        return Unusable(exc.errors(include_url=False, include_input=False, include_context=False))


class Batch(Strict):
    """Messages for users and topics."""

    messages: list[Annotated[Publication, WrapValidator(_keep_going)]] = Field(
        min_length=1, max_length=MAX_BATCH, description="1 to 1,000 messages."
    )


class Result(BaseModel):
    """What became of one message: a receipt, or a problem."""

    offset: int = Field(default_factory=absent, description="As in a receipt.")
    duplicate: bool = Field(default_factory=absent, description="As in a receipt.")
    problem: ProblemDocument = Field(default_factory=absent, description="Why it is not stored.")

    @property
    def has_failed(self) -> bool:
        """Whether there is a problem."""
        return "problem" in self.model_fields_set


class Results(BaseModel):
    """What became of each message, in their order."""

    results: list[Result] = Field(description="A receipt or a problem for each message.")
    failed: int = Field(description="How many have a problem.")
