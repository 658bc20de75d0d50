"""CHANNEL_LAYERS: the entries that use our layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from wsgateway.broker.addresses import split_urls
from wsgateway.checks.base import ended, possible, sentence
from wsgateway.checks.servers import url_problem
from wsgateway.conf import settings
from wsgateway.layer import NatsChannelLayer
from wsgateway.layer.config import OptionRefused, find_problems, server_urls
from wsgateway.layer.differences import find_differences

__all__ = ["check_layer_differences", "check_layers", "check_other_layers"]

BACKEND = f"{NatsChannelLayer.__module__.removesuffix('.core')}.{NatsChannelLayer.__name__}"
KEYS = {"BACKEND", "CONFIG", "TEST_CONFIG"}
"""What Channels reads."""


def check_layers(**kwargs: Any) -> list[CheckMessage]:
    """E007: a channel layer that cannot work, and what of Redis' configuration is left in it."""
    return [
        Error(
            ended(f"CHANNEL_LAYERS[{alias!r}]{where}: {problem.problem}"),
            hint=sentence(problem.cure),
            id="wsgateway.E007",
        )
        for alias, layer in settings.channel_layers.items()
        for where, problem in _problems(layer)
    ]


def check_layer_differences(**kwargs: Any) -> list[CheckMessage]:
    """W009: a channel layer that is elsewhere than the gateway, whose sockets get nothing."""
    needed = ("PUBSUB_BROKER", "NATS_BROKER_URL", "WSGATEWAY_PREFIX")
    if not possible(*needed) or any(map(url_problem, split_urls(settings.URL))):
        return []
    return [
        Warning(
            ended(f"CHANNEL_LAYERS[{alias!r}]: {problem}"),
            hint=sentence(cure),
            id="wsgateway.W009",
        )
        for alias, layer in settings.channel_layers.items()
        for problem, cure in find_differences(*_where(layer))
    ]


def check_other_layers(**kwargs: Any) -> list[CheckMessage]:
    """W014: a layer of channels_redis and none of ours; nothing sent to it reaches the gateway."""
    layers = settings.channel_layers
    if any(map(_backend, layers.values())):
        return []
    backends = {
        alias: str(layer.get("BACKEND"))
        for alias, layer in layers.items()
        if isinstance(layer, Mapping)
    }
    return [
        Warning(
            f"CHANNEL_LAYERS[{alias!r}]: BACKEND is {path!r}, so group_send does not reach the "
            "gateway's sockets.",
            hint=f"Use {BACKEND!r}. Silence this if the layer only serves consumers of your own.",
            id="wsgateway.W014",
        )
        for alias, path in backends.items()
        if path.startswith("channels_redis.")
    ]


def _where(layer: Any) -> tuple[list[str], str | None]:
    """Return servers and prefix of an entry, as far as they are possible; else the settings'."""
    config = layer.get("CONFIG") if _takes_options(_backend(layer)) else None
    if not isinstance(config, Mapping):
        return [], None
    prefix = config.get("prefix")
    if any(True for _ in find_problems({"prefix": prefix})):
        prefix = None
    try:
        return server_urls(config.get("servers") or config.get("hosts")), prefix
    except OptionRefused:
        return [], prefix


def _takes_options(backend: type | None) -> bool:
    """Say whether CONFIG are our options; a subclass may have its own."""
    return getattr(backend, "__init__", None) is NatsChannelLayer.__init__


def _backend(layer: Any) -> type[NatsChannelLayer] | None:
    """Return the class of an entry; None if it is not ours."""
    path = layer.get("BACKEND") if isinstance(layer, Mapping) else None
    try:
        backend = import_string(path) if isinstance(path, str) else None
    except Exception:  # whatever a project's own module raises
        return None
    is_ours = isinstance(backend, type) and issubclass(backend, NatsChannelLayer)
    return backend if is_ours else None


def _problems(layer: Any) -> Iterator[tuple[str, OptionRefused]]:
    """Return what is wrong in one entry, and below which key; nothing for other backends."""
    backend = _backend(layer)
    if backend is None:
        path = str(layer.get("BACKEND")) if isinstance(layer, Mapping) else ""
        if path.startswith("wsgateway."):
            problem = f"BACKEND is {path!r}, which is not a channel layer"
            yield "", OptionRefused(problem, f"use {BACKEND!r}")
        return
    for key in sorted(layer.keys() - KEYS, key=str):
        yield "", OptionRefused(f"Channels ignores the key {key!r}", "move it into CONFIG")
    if not _takes_options(backend):
        return
    for key in ("CONFIG", "TEST_CONFIG"):
        config = layer.get(key, {})
        if isinstance(config, Mapping):
            yield from ((f"[{key!r}]", problem) for problem in find_problems(config))
        else:
            problem = f"{key} is of type {type(config).__name__}, but must be a dict"
            yield "", OptionRefused(problem, "for example {'capacity': 100}")
