"""CHANNEL_LAYERS: those that are ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.checks import CheckMessage, Error
from django.utils.module_loading import import_string

from wsgateway.checks.base import sentence
from wsgateway.conf import settings
from wsgateway.layer import NatsChannelLayer
from wsgateway.layer.config import OptionRefused, find_problems

__all__ = ["check_layers"]

BACKEND = f"{NatsChannelLayer.__module__.removesuffix('.core')}.{NatsChannelLayer.__name__}"
KEYS = {"BACKEND", "CONFIG", "TEST_CONFIG"}
"""What Channels reads."""


def check_layers(**kwargs: Any) -> list[CheckMessage]:
    """E007: a channel layer that cannot work, and what of Redis' configuration is left in it."""
    return [
        Error(
            f"CHANNEL_LAYERS[{alias!r}]{where}: {problem.problem}.",
            hint=sentence(problem.cure),
            id="wsgateway.E007",
        )
        for alias, layer in settings.channel_layers.items()
        for where, problem in _problems(layer)
    ]


def _problems(layer: Any) -> Iterator[tuple[str, OptionRefused]]:
    """Return what is wrong in one entry, and below which key; nothing for other backends."""
    if not isinstance(layer, Mapping):
        return
    backend = layer.get("BACKEND")
    try:
        backend = import_string(backend) if isinstance(backend, str) else None
    except Exception as exc:  # whatever a project's own module raises
        if str(backend).startswith("wsgateway."):
            yield "", OptionRefused(f"BACKEND is {backend!r}: {exc}", f"use {BACKEND!r}")
        return
    if not (isinstance(backend, type) and issubclass(backend, NatsChannelLayer)):
        return
    for key in sorted(layer.keys() - KEYS, key=str):
        yield "", OptionRefused(f"Channels ignores the key {key!r}", "move it into CONFIG")
    if backend.__init__ is not NatsChannelLayer.__init__:
        return  # which may have options of its own
    for key in ("CONFIG", "TEST_CONFIG"):
        config = layer.get(key, {})
        if isinstance(config, Mapping):
            yield from ((f"[{key!r}]", problem) for problem in find_problems(config))
        else:
            problem = f"{key} is of type {type(config).__name__}, but must be a dict"
            yield "", OptionRefused(problem, "for example {'capacity': 100}")
