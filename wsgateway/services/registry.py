"""Which handler serves which service: the decorator, and finding the modules that use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from wsgateway import declared
from wsgateway.bridges.names import carry_flaw
from wsgateway.broker.messages import TOPIC_HEADER
from wsgateway.conf import settings
from wsgateway.declared import source_of
from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.subjects import Subjects
from wsgateway.services.errors import Reject
from wsgateway.services.message import Message
from wsgateway.services.policy import Policies, RetryPolicy
from wsgateway.services.webhooks import WebhookHandler
from wsgateway.webhooks.config import Webhook, webhook_of
from wsgateway.webhooks.sender import missing_httpx

__all__ = [
    "JsonHandler",
    "Service",
    "bridge_flaws",
    "find_services",
    "get_service",
    "service",
    "service_of_topics",
    "webhook_flaw",
]

CONCURRENCY = 16
"""Users served at once by one worker, unless a service says otherwise."""
WEBHOOK_ATTEMPTS = 20
"""Tries of a webhook, about ten minutes: a backend that is down for a deploy is not a bug."""

if TYPE_CHECKING:
    from wsgateway.bridges.config import Bridge
    from wsgateway.broker.work import Job
    from wsgateway.topics.registry import TopicService

F = TypeVar("F", bound=Callable[..., Any])


class Service:
    """A handler and how it is to be run; made by `service`.

    Attributes:
        name: The service.
        handler: What is called with each message.
        is_async: Whether it is a coroutine function; others run in threads.
        policies: When to try again, by type of exception.
        concurrency: Users served at once by one worker.
        timeout: Seconds that a handler may take; None: any.
        has_topics: Whether it gets what clients send to topics, instead of to the service.
        is_ours: Whether the handler is a part of wsgateway, such as a bridge or a webhook. It may
            take as long as an outage lasts, or as a setting says. No message makes it hang, or end
            its process.
    """

    def __init__(
        self,
        name: str,
        handler: Any,
        policies: Policies,
        concurrency: int,
        timeout: float | None = None,
        *,
        has_topics: bool = False,
        is_ours: bool = False,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency!r}, but must be 1 or more")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}, but must be above 0 seconds, or None")
        self.name = name
        self.handler, self.is_async = _callable(handler)
        self.policies = policies
        self.concurrency = concurrency
        self.timeout = timeout
        self.has_topics = has_topics
        self.is_ours = is_ours

    def refuse(self, job: Job) -> MalformedMessage | None:
        """Return why the handler cannot have a message that only a gateway may send.

        A program that may publish in NATS could make the handler take it for another user's, or
        send it to a topic that the user may not write.
        """
        if not self.has_topics and job.inbox.service != self.name:
            return MalformedMessage(
                f"it comes from a user of {job.inbox.service!r}, who can send to topics, but "
                f"{self.name!r} has none"
            )
        if self.has_topics and (job.topic is None or job.inbox.service == self.name):
            return MalformedMessage(
                "it was not sent to a topic by a gateway: its subject or its header "
                f"{TOPIC_HEADER} does not say so"
            )
        return None

    async def close(self) -> None:
        """Close what the handler keeps open between messages. Idempotent."""
        if isinstance(self.handler, WebhookHandler):
            await self.handler.close()

    def __repr__(self) -> str:
        return f"<Service {self.name}>"


class JsonHandler:
    """Base of class-based services: the ``type`` of a JSON object chooses the method.

    ``{"type": "cart.add", …}`` calls ``cart_add(message, data)``; every method that does not
    begin with an underscore can be called by clients. A new instance serves each message.
    """

    async def __call__(self, message: Message) -> None:
        """Find the method and call it.

        Raises:
            Reject: The payload is not a JSON object with a ``type`` that has a method.
        """
        data = message.json()
        kind = data.get("type") if isinstance(data, dict) else None
        if not isinstance(kind, str):
            raise Reject('send a JSON object with a string "type"', code="bad_request")
        name = kind.replace(".", "_")
        method = None if name.startswith("_") else getattr(type(self), name, None)
        if name == "allow" and message.topic is not None:  # it says who may, see `topic`
            method = None
        if method is None or not inspect.iscoroutinefunction(method):
            raise Reject(f"unknown type {kind[:64]!r}", code="unknown_type")
        await method(self, message, data)


def service(
    name: str,
    *,
    retry: RetryPolicy | Mapping[type[BaseException], RetryPolicy] | None = None,
    concurrency: int = CONCURRENCY,
    timeout: float | None = None,
) -> Callable[[F], F]:
    """Register a function, or a `JsonHandler`, as the service *name*.

    ::

        @service("orders")
        async def handle(message):
            await message.reply(json={"ok": True})

    Put it into ``ws_services.py`` of an installed app; ``manage.py runservice orders`` runs it. A
    synchronous function runs in a thread, with Django's database connections taken care of.

    Args:
        name: The service; clients name it when they connect.
        retry: When to try again: one policy, or one by type of exception (the first that fits).
        concurrency: Users served at once by one worker.
        timeout: Seconds after which a handler is interrupted, which counts as a failure; None:
            it may take any time. A synchronous one is interrupted when it runs Python code again,
            not while it waits in a system call or a C library.

    Raises:
        NameRefused: *name* cannot be part of a subject, or is too long for a stream's name.
        ValueError: There is such a service already, or a number is out of range.
        TypeError: What is decorated cannot be called with a message.
    """
    if callable(name):
        raise TypeError(f'@service needs a name: write @service("orders") above {name!r}')
    Subjects(settings.PREFIX).require_service(name)
    policies = _policies(retry)

    def register(handler: F) -> F:
        _register(Service(name, handler, policies, concurrency, timeout))
        return handler

    return register


def _policies(retry: RetryPolicy | Policies | None) -> Policies:
    if isinstance(retry, RetryPolicy):
        return {Exception: retry}
    policies = dict(retry or {})
    for kind in policies:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"retry has the key {kind!r}, which is not a class of exceptions")
    return policies


def _register(new: Service) -> None:
    known: Service | None = declared.registered.get(new.name)
    if known is not None and source_of(known.handler) != source_of(new.handler):
        raise ValueError(f"service {new.name!r} has a handler already: {source_of(known.handler)}")
    if new.name in declared.topics:
        raise ValueError(
            f"{new.name!r} is a service of topics; a service has users or topics, so rename one"
        )
    declared.registered[new.name] = new


def _callable(handler: Any) -> tuple[Callable[..., Any], bool]:
    """Return what is called with each message, and whether the result is awaited.

    Raises:
        TypeError: It cannot be called so.
    """
    if isinstance(handler, type):
        if not issubclass(handler, JsonHandler):
            raise TypeError(f"{handler.__name__} must derive from wsgateway.JsonHandler")

        async def call(message: Message) -> None:
            await handler()(message)

        call.__module__, call.__qualname__ = handler.__module__, handler.__qualname__
        return call, True
    if not callable(handler):
        raise TypeError(f"{handler!r} is not a function")
    function = handler if inspect.isroutine(handler) else type(handler).__call__
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        text = f"{source_of(handler)} has a yield, so calling it would not handle anything"
        raise TypeError(text)
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(function)
    return handler, is_async


def find_services() -> dict[str, Service]:
    """Return every service that has a handler, by name: those of users, of topics, and webhooks.

    Raises:
        TypeError: What handles messages to topics is not a handler, or its options are wrong.
        ValueError: One of these options is out of its range.
        ImproperlyConfigured: A webhook cannot be used.
    """
    found: dict[str, Service] = dict(declared.discover())
    for name, topics in sorted(declared.topics.items()):
        if topics.handler is not None:
            found[name] = service_of_topics(topics)
    for name, options in sorted(settings.WEBHOOKS.items()):
        if flaw := webhook_flaw(name) or missing_httpx():
            raise ImproperlyConfigured(flaw)
        found[name] = _service_of_webhook(name, webhook_of(options))
    for bridge in declared.bridges().values():
        if twice := bridge.sends and found.keys() & set(bridge.services):
            raise ImproperlyConfigured(_handled_twice(bridge, min(twice)))
    return found


def _handled_twice(bridge: Bridge, service: str) -> str:
    return (
        f"the bridge {bridge.name!r} takes what clients send to {service!r}, which "
        f"{_handler_of(service, settings.WEBHOOKS)} handles; remove one of them, or set the "
        "bridge's 'direction' to 'receive'"
    )


def _handler_of(service: str, webhooks: Container[str]) -> str:
    """Return what handles a service in this project, in words; "" if nothing does.

    Args:
        service: Its name.
        webhooks: The services with webhooks that count.
    """
    topics = declared.topics.get(service)
    handler = declared.registered.get(service) or (topics and topics.handler)
    if handler is not None:
        return source_of(getattr(handler, "handler", handler))
    return "a webhook" if service in webhooks else ""


def bridge_flaws(bridge: Bridge) -> list[str]:
    """Return why services of a bridge cannot be carried, or not by it."""
    found = []
    for service in bridge.services:
        if flaw := carry_flaw(bridge.bus, bridge.prefix, service):
            found.append(f"the bridge {bridge.name!r}: {flaw}")
        if not bridge.sends:
            continue
        topics = declared.topics.get(service)
        if _handler_of(service, settings.WEBHOOKS):
            found.append(_handled_twice(bridge, service))
        elif topics is not None and not topics.queue:
            found.append(
                f"the bridge {bridge.name!r} takes what clients send to topics of {service!r}, "
                "which have no queue; pass queue=True to @topic, or set the bridge's 'direction' "
                "to 'receive'"
            )
    return found


def webhook_flaw(name: str) -> str:
    """Return why the webhook of the service *name* cannot be used; "" if it can."""
    topics = declared.topics.get(name)
    if known := _handler_of(name, webhooks=()):
        return (
            f"WSGATEWAY_WEBHOOKS names {name!r}, which has a handler: {known}; remove one of them"
        )
    if topics is not None and not topics.queue:
        return (
            f"WSGATEWAY_WEBHOOKS names {name!r}, whose topics have no queue; pass queue=True to "
            "@topic"
        )
    return ""


def _service_of_webhook(name: str, webhook: Webhook) -> Service:
    return Service(
        name,
        WebhookHandler(webhook.endpoint),
        {Exception: RetryPolicy(**{"attempts": WEBHOOK_ATTEMPTS, **webhook.retry})},
        webhook.concurrency or CONCURRENCY,
        has_topics=name in declared.topics,
        is_ours=True,
    )


def service_of_topics(topics: TopicService) -> Service:
    """Return the service that handles what clients send to *topics*; see `find_services`."""
    handler = topics.handler
    options = {"concurrency": CONCURRENCY, **topics.handling}
    policies = _policies(options.pop("retry", None))
    if isinstance(handler, JsonHandler):  # a new one serves each message
        handler = type(handler)
    return Service(topics.name, handler, policies, **options, has_topics=True)


def get_service(name: str) -> Service:
    """Return a service.

    Raises:
        LookupError: There is none of that name.
    """
    services = find_services()
    try:
        return services[name]
    except KeyError:
        known = ", ".join(sorted(services)) or "none"
        if name in declared.topics:
            raise LookupError(
                f"topics of {name!r} have no handler; give the class that @topic declares a "
                "method handle(self, message)"
            ) from None
        for bridge in declared.bridges().values():
            if name in bridge.services:
                raise LookupError(
                    f"the bridge {bridge.name!r} carries {name!r}; run: manage.py runbridge "
                    f"{bridge.name}"
                ) from None
        raise LookupError(
            f"no service {name!r}; known: {known}. Is its app in INSTALLED_APPS, and the handler "
            f"in its {settings.SERVICES_MODULE}.py? Or is it missing in WSGATEWAY_WEBHOOKS?"
        ) from None
