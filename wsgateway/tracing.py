"""OpenTelemetry: spans for messages that are sent and handled, and their context in headers.

The only module that imports opentelemetry, whose API is optional. Without it, or as long as the
project has not set a tracer provider, `find_tracer` returns None, and nobody calls anything else
here.

Names and attributes are those of OpenTelemetry's conventions for messaging spans. A name holds a
destination's template, not its subject, because subjects name users.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from wsgateway import __version__
from wsgateway.exceptions import in_one_line

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    is_installed = False
else:
    is_installed = True
    W3C = TraceContextTextMapPropagator()

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, TracerProvider

__all__ = [
    "TRACEPARENT",
    "TRACESTATE",
    "Destination",
    "Tracer",
    "context_headers",
    "find_tracer",
    "finish",
    "forget_tracer",
    "sampled",
]

Headers = Mapping[str, str]

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
"""The headers of W3C Trace Context, and the fields of ``wsgateway.v1``."""
LOOK_EACH = 1.0
"""Seconds between two looks for a tracer provider."""
W3C_SIZE = 55
"""Characters of a ``traceparent``."""
MAX_REASON = 200
"""Characters of an error's text in a span."""


class Destination(NamedTuple):
    """What a message is sent to, or comes from.

    Attributes:
        system: ``nats`` or ``memory``.
        subject: The whole subject.
        template: The subject with a placeholder for what there are many of.
        server: The broker's host and port; None if it is not connected.
    """

    system: str
    subject: str
    template: str
    server: tuple[str, int] | None


_tracer: Tracer | None = None
_look_at = 0.0  # when to look for a provider again, on the monotonic clock


def find_tracer() -> Tracer | None:
    """Return what makes spans; None if the project has set no tracer provider.

    For hot paths: asking OpenTelemetry takes a microsecond, so that is done once a second.
    """
    global _tracer, _look_at
    if _tracer is None and is_installed and (now := monotonic()) >= _look_at:
        _look_at = now + LOOK_EACH
        provider = trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            _tracer = Tracer(provider)  # OpenTelemetry takes no second one
    return _tracer


def context_headers() -> dict[str, str]:
    """Return the headers that carry the current context; empty without a tracer."""
    tracer = find_tracer()
    return {} if tracer is None else tracer.inject()


def forget_tracer() -> None:
    """Look for the provider again; for tests, which replace it."""
    global _tracer, _look_at
    _tracer, _look_at = None, 0.0


def sampled(traceparent: str | None) -> str | None:
    """Return a ``traceparent`` header whose trace is recorded somewhere; None for any other."""
    if traceparent is None or len(traceparent) != W3C_SIZE:
        return None
    return traceparent if traceparent[-1] in "13579bdf" else None  # the lowest bit of the flags


def finish(span: Span, error: BaseException | None = None) -> None:
    """End *span*, as failed if there is an *error*."""
    if error is not None:
        kind = type(error)
        own = kind.__module__ in ("builtins", "__main__")
        name = kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.set_status(trace.StatusCode.ERROR, _text_of(error))
    span.end()


def _text_of(error: BaseException) -> str:
    try:
        return in_one_line(str(error)[:MAX_REASON])
    except Exception:  # a handler's may raise anything
        return ""


class Tracer:
    """Makes spans with the tracer of *provider*.

    Args:
        provider: The project's.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("wsgateway", __version__)

    # -- context -------------------------------------------------------------------------

    def inject(self) -> dict[str, str]:
        """Return the headers that carry the current context."""
        headers: dict[str, str] = {}
        propagate.inject(headers)
        return headers

    def inject_w3c(self) -> dict[str, str]:
        """Return the current span's W3C trace context; empty outside of a span."""
        headers: dict[str, str] = {}
        W3C.inject(headers)
        return headers

    @contextlib.contextmanager
    def continuing(self, headers: Headers) -> Iterator[None]:
        """Make the context in a message's headers the current one."""
        token = contexts.attach(_extract(headers))
        try:
            yield
        finally:
            contexts.detach(token)

    @contextlib.contextmanager
    def continuing_request(self, headers: Headers) -> Iterator[None]:
        """Make the W3C trace context in a request's headers the current one.

        If something else traces requests, its span is current already, and stays so.
        """
        if trace.get_current_span().get_span_context().is_valid:
            yield
            return
        token = contexts.attach(W3C.extract(_lower(headers)))
        try:
            yield
        finally:
            contexts.detach(token)

    def links_to_handshake(self, headers: Headers) -> list[Link]:
        """Return the link from a socket's messages to its handshake.

        That is the current span, if something else traces requests, or what *headers* name. A
        socket may stay open for days, so its messages have traces of their own.
        """
        span = trace.get_current_span()
        if not span.get_span_context().is_valid:
            span = trace.get_current_span(W3C.extract(_lower(headers)))
        return _links(span)

    # -- spans ---------------------------------------------------------------------------

    def begin_client_message(
        self,
        destination: Destination,
        size: int,
        headers: Headers,
        attributes: Mapping[str, Any],
        *,
        links: Sequence[Link],
        continues: bool,
    ) -> tuple[Span, dict[str, str]]:
        """Start the span of a message that a client sent; `finish` it.

        Args:
            destination: Where the gateway publishes it.
            size: Bytes of its payload.
            headers: Its headers; perhaps with the client's trace context.
            attributes: More attributes.
            links: To the handshake.
            continues: Whether the client's trace goes on, or another one has a link to it.

        Returns:
            The span, and the headers that carry its context.
        """
        carrier = _carrier(headers)
        parent = W3C.extract(carrier)
        if not continues:
            links = [*links, *_links(trace.get_current_span(parent))]
            parent = contexts.Context()
        kind = trace.SpanKind.PRODUCER
        values = {**_attributes("send", "send", destination, size), **attributes}
        name = f"send {destination.template}"
        span = self._tracer.start_span(name, parent, kind, values, links)
        others = {name: value for name, value in headers.items() if name not in carrier}
        return span, _with_context(others, span)

    @contextlib.contextmanager
    def sending(
        self,
        destination: Destination,
        size: int,
        headers: Headers,
        attributes: Mapping[str, Any],
    ) -> Iterator[Headers]:
        """Trace a publish, in the current context; gives the headers to publish with.

        Headers that have a trace context keep it, as the conventions want it: their message was
        created elsewhere.
        """
        carrier = _carrier(headers)
        links = _links(trace.get_current_span(_extract(headers))) if carrier else []
        values = {**_attributes("send", "send", destination, size), **attributes}
        name, kind = f"send {destination.template}", trace.SpanKind.PRODUCER
        span = self._tracer.start_span(name, None, kind, values, links)
        try:
            yield headers if carrier else _with_context(headers, span)
        except BaseException as exc:
            finish(span, exc)
            raise
        finish(span)

    @contextlib.contextmanager
    def delivering(
        self,
        destination: Destination,
        size: int,
        traceparent: str,
        attributes: Mapping[str, Any],
    ) -> Iterator[None]:
        """Trace a write to a socket, as part of the message's trace."""
        parent = W3C.extract({TRACEPARENT: traceparent})
        values = {**_attributes("deliver", "process", destination, size), **attributes}
        name, kind = f"deliver {destination.template}", trace.SpanKind.CONSUMER
        links = _links(trace.get_current_span(parent))
        span = self._tracer.start_span(name, parent, kind, values, links)
        try:
            yield
        except BaseException as exc:
            finish(span, exc)
            raise
        finish(span)

    @contextlib.contextmanager
    def processing(
        self, destination: Destination, size: int, attributes: Mapping[str, Any]
    ) -> Iterator[Span]:
        """Trace a handler, in the context that `continuing` set; `finish` the span it gives."""
        links = _links(trace.get_current_span())
        values = {**_attributes("process", "process", destination, size), **attributes}
        name, kind = f"process {destination.template}", trace.SpanKind.CONSUMER
        span = self._tracer.start_span(name, None, kind, values, links)
        token = contexts.attach(trace.set_span_in_context(span))
        try:
            yield span
        finally:
            contexts.detach(token)


def _attributes(name: str, kind: str, destination: Destination, size: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "messaging.system": destination.system,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination.subject,
        "messaging.destination.template": destination.template,
        "messaging.message.body.size": size,
    }
    if destination.server is not None:
        values["server.address"], values["server.port"] = destination.server
    return values


def _lower(headers: Headers) -> dict[str, str]:
    """Return *headers* with names in lower case; Go's carriers write ``Traceparent``."""
    return {name.lower(): value for name, value in headers.items()}


def _carrier(headers: Headers) -> dict[str, str]:
    """Return those of *headers* that are a W3C trace context."""
    return {n: headers[n] for n in headers if n.lower() in (TRACEPARENT, TRACESTATE)}


def _extract(headers: Headers) -> Context:
    return propagate.extract(_lower(headers))


def _links(span: Span) -> list[Link]:
    found = span.get_span_context()
    return [trace.Link(found)] if found.is_valid else []


def _with_context(headers: Headers, span: Span) -> dict[str, str]:
    found = dict(headers)
    propagate.inject(found, trace.set_span_in_context(span))
    return found
