"""The site with OpenTelemetry's SDK, as a project sets it up; spans go to standard output."""

from __future__ import annotations

import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from project.asgi import application

__all__ = ["application"]


def line(span: ReadableSpan) -> str:
    return f"SPAN {span.to_json(indent=None)}\n"


provider = TracerProvider()
exporter = ConsoleSpanExporter(out=sys.stdout, formatter=line)
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
