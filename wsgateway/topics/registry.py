"""Who may read and write topics: the decorator that declares a service of topics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from wsgateway import declared
from wsgateway.conf import settings
from wsgateway.declared import source_of
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Subjects

if TYPE_CHECKING:
    from wsgateway.identity import Identity
    from wsgateway.services.policy import RetryPolicy

__all__ = ["TopicService", "topic"]

R = TypeVar("R", bound=Callable[..., Any])

Allow = Callable[["Identity", str], Any]
"""Takes a socket's identity and a topic's name; returns ``"read"``, ``"write"`` or None."""


class TopicService:
    """A service of topics; made by `topic`.

    Attributes:
        name: The service: the part of a topic's name before the first dot.
        allow: Says who may read and write which of its topics.
        handler: What is called with each message that a client sends to one of its topics; None:
            nothing in this project.
        durable: Whether its topics are stored.
        direct: Whether a gateway stores what clients send in the topic itself.
        presence: Whether clients that may read a topic may also watch who reads it.
        queue: Whether what clients send waits in the service's queue: for the handler, or for a
            program that is not part of this project.
        handling: How the handler is to be run: the options of `wsgateway.service`.
    """

    def __init__(
        self,
        name: str,
        allow: Allow,
        handler: Callable[..., Any] | None = None,
        *,
        durable: bool = True,
        direct: bool = False,
        presence: bool = False,
        queue: bool = False,
        **handling: Any,
    ) -> None:
        if direct and handler is not None:
            raise ValueError(
                f"topics of {name!r} store what clients send, so handle() is never called; "
                "remove it, or direct=True"
            )
        if direct and queue:
            raise ValueError(
                f"topics of {name!r} store what clients send, so nothing waits in a queue; "
                "remove queue=True, or direct=True"
            )
        if handling and handler is None:
            raise ValueError(
                f"topics of {name!r} have no handler for {', '.join(sorted(handling))}; decorate "
                "a class with a method handle(self, message)"
            )
        self.name = name
        self.allow = allow
        self.handler = handler
        self.durable = durable
        self.direct = direct
        self.presence = presence
        self.queue = queue or handler is not None
        self.handling = handling

    @property
    def is_writable(self) -> bool:
        """Whether what clients send goes anywhere."""
        return self.direct or self.queue

    def __repr__(self) -> str:
        return f"<TopicService {self.name}>"


def topic(
    name: str,
    *,
    durable: bool = True,
    direct: bool = False,
    presence: bool = False,
    queue: bool = False,
    retry: RetryPolicy | Mapping[type[BaseException], RetryPolicy] | None = None,
    concurrency: int | None = None,
    timeout: float | None = None,
) -> Callable[[R], R]:
    """Declare the topics of a service, and who may read and write them.

    ::

        @topic("room", direct=True)
        def allow(identity, name):
            if Member.objects.filter(room=name, user__username=identity.user).exists():
                return "write"

    The function says what *identity* may do with the topic ``room.<name>``: ``"read"``,
    ``"write"``, which includes reading, or None. A synchronous function runs in a thread, with
    Django's database connections taken care of. If it raises, the client is refused and the error
    is logged.

    A class works too. It has the function as a method, ``allow(self, identity, name)``, and
    perhaps a handler of what clients send, ``handle(self, message)``, which ``manage.py
    runservice`` runs like that of a `service`. One instance serves all. A `JsonHandler` with a
    method ``allow`` works, too; a new instance of it serves each message.

    Put it into ``ws_services.py`` of an installed app.

    Args:
        name: The service, which has topics and no users.
        durable: Whether messages are stored. If not, they reach those who are subscribed, once at
            most, and `direct` and ``allow`` work the same.
        direct: Whether what clients send goes to the topic at once, with the sender's name, and
            not to a handler.
        presence: Whether clients that may read a topic may also see who reads it.
        queue: Whether what clients send waits for a program that is not part of this project.
        retry: When the handler is to be tried again; see `service`, also for the next two.
        concurrency: Users served at once by one worker; None: 16.
        timeout: Seconds after which the handler is interrupted.

    Raises:
        NameRefused: *name* cannot be part of a subject, is too long for a stream's name, or has
            a dot.
        ValueError: There is such a service already, or two arguments contradict each other.
        TypeError: What is decorated cannot be called with an identity and a name.
    """
    given = {"retry": retry, "concurrency": concurrency, "timeout": timeout}
    handling = {option: value for option, value in given.items() if value is not None}
    _require_name(name)

    def register(rules: R) -> R:
        allow, handler = _parts(rules)
        service = TopicService(
            name,
            allow,
            handler,
            durable=durable,
            direct=direct,
            presence=presence,
            queue=queue,
            **handling,
        )
        _register(service)
        return rules

    return register


def _require_name(name: Any) -> None:
    """Refuse what cannot be a service of topics, or a decorator without its arguments.

    Raises:
        NameRefused: No service of topics can have this name.
        TypeError: There is no name.
    """
    if callable(name):
        raise TypeError(f'@topic needs the name of a service: write @topic("room") above {name!r}')
    subjects = Subjects(settings.PREFIX)
    subjects.require_service(name)
    subjects.topic_stream(name)
    service, dot, rest = name.partition(".")
    if dot:
        raise NameRefused(
            f"service of topics {name!r} has a dot, so clients could not name its topics; "
            f"declare @topic({service!r}): its function is called with {rest!r} as the name"
        )


def _parts(rules: Any) -> tuple[Allow, Callable[..., Any] | None]:
    """Return what says who may, and what handles messages, if anything does.

    Raises:
        TypeError: *rules* is neither a function nor a class as `topic` wants it.
    """
    handler = None
    allow = rules
    if isinstance(rules, type):
        instance = rules()
        allow = getattr(instance, "allow", None)
        handler = instance if callable(instance) else getattr(instance, "handle", None)
        if allow is None:
            raise TypeError(f"{rules.__name__} needs a method allow(self, identity, name)")
        if handler is not None and not callable(handler):
            raise TypeError(f"{rules.__name__}.handle is not a method")
    _require_allow(allow)
    return allow, handler


def _require_allow(allow: Any) -> None:
    if not callable(allow):
        raise TypeError(f"{allow!r} is not a function")
    function = allow if inspect.isroutine(allow) else type(allow).__call__
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{source_of(allow)} has a yield, so calling it would not decide anything")
    try:
        inspect.signature(allow).bind(object(), "name")
    except TypeError as exc:
        raise TypeError(f"{source_of(allow)} must take two arguments, identity and name") from exc
    except ValueError:  # of some built-in functions
        return


def _register(new: TopicService) -> None:
    known = declared.topics.get(new.name)
    if known is not None and source_of(known.allow) != source_of(new.allow):
        raise ValueError(f"topics of {new.name!r} are declared already: {source_of(known.allow)}")
    if new.name in declared.registered:
        raise ValueError(
            f"{new.name!r} is a service of users; a service has users or topics, so rename one"
        )
    declared.topics[new.name] = new
