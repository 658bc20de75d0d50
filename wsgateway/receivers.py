"""Tells every gateway what Django signals about logins, once it is committed.

Nothing here waits: a logout succeeds even if the broker is away. Gateways that hear nothing find
out by themselves, see `wsgateway.gateway.revocation`.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Collection
from contextvars import ContextVar
from functools import partial
from typing import Any

from django.apps import apps
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_delete, post_save
from django.utils import timezone

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.project_server import embedded_is_running
from wsgateway.broker.runtime import on_fork
from wsgateway.conf import settings
from wsgateway.exceptions import reason_of
from wsgateway.gateway.revocation import TOPIC, Notice, session_digest, user_digest
from wsgateway.identity.voiding import void_tokens
from wsgateway.logins import session_model, session_store, sessions_are_cookies, user_models

__all__ = ["connect"]

logger = logging.getLogger("wsgateway")

TOKEN_MODELS = ("authtoken.Token", "knox.AuthToken")
"""Tables of Django REST framework's tokens, as far as they are installed."""
EXIT_TIMEOUT = 2.0
"""Seconds that the end of a process may wait for notices that have not been sent."""
LINES = 500
"""Notices in one broadcast."""
MAX_PENDING = 50_000
"""Notices that may wait for the broker; further ones are left to revalidation."""

_created: ContextVar[Any] = ContextVar("wsgateway_created_session", default=None)
"""The session that this thread or task has stored last: `cycle_key` stores the new one and then
deletes the old one."""


def connect() -> None:
    """Connect every receiver; called once, when all models are loaded."""
    user_logged_in.connect(on_log_in, dispatch_uid="wsgateway.log_in")
    user_logged_out.connect(on_log_out, dispatch_uid="wsgateway.log_out")
    for model in user_models():
        post_save.connect(on_user_saved, sender=model, dispatch_uid="wsgateway.user_saved")
        post_delete.connect(on_user_deleted, sender=model, dispatch_uid="wsgateway.user_deleted")
    for label in TOKEN_MODELS:
        with contextlib.suppress(LookupError):
            tokens = apps.get_model(label)
            post_delete.connect(on_token_deleted, tokens, dispatch_uid="wsgateway.token_deleted")
    sessions = session_model()
    if sessions is not None:
        post_save.connect(on_session_saved, sessions, dispatch_uid="wsgateway.session_saved")
        post_delete.connect(on_session_deleted, sessions, dispatch_uid="wsgateway.session_deleted")


# -- receivers -----------------------------------------------------------------------------------


def on_log_out(request: Any = None, user: Any = None, **kwargs: Any) -> None:
    """Announce the end of a session, which Django is about to delete."""
    key = getattr(getattr(request, "session", None), "session_key", None)
    if sessions_are_cookies():
        if user is not None:
            _tell(None, Notice.RETURN, user_digest(_text_key(user)))
    elif key:
        _tell(_sessions_alias(), Notice.ENDED, session_digest(key))


def on_log_in(request: Any = None, user: Any = None, **kwargs: Any) -> None:
    """Announce that the browser has a new session.

    A login that has nothing to do with sessions, by a token for example, leaves it as it is.
    """
    old = getattr(request, "COOKIES", {}).get(settings.session_cookie_name)
    session = getattr(request, "session", None)
    if not old or session is None or session.session_key == old:
        return
    before = session_store()(old)
    if sessions_are_cookies():
        if user_id := before.get(SESSION_KEY):
            _tell(None, Notice.RETURN, user_digest(user_id))
    elif not before.exists(old):
        digests = session_digest(old), user_digest(_text_key(user))
        _tell(_sessions_alias(), Notice.REPLACED, *digests)


def announce_end(user: Any) -> None:
    """Announce that a user is logged out everywhere."""
    _tell(router.db_for_write(type(user)), Notice.ENDED, user_digest(_text_key(user)))


def on_user_saved(
    instance: Any, created: bool, using: str, update_fields: Collection[str] | None, **kwargs: Any
) -> None:
    """Announce that a user may have a new password, or may no longer log in."""
    fields = set(update_fields or ["password"])
    if created or fields == {"last_login"}:
        return
    _tell(using, Notice.CHANGED, user_digest(_text_key(instance)))
    # Django forgets the raw password after this signal; a hash that it has only renewed has none
    if "password" in fields and getattr(instance, "_password", None) is not None:
        _void_tokens(using, _text_key(instance))


def on_user_deleted(instance: Any, using: str, **kwargs: Any) -> None:
    """Announce that a user was deleted."""
    _tell(using, Notice.CHANGED, user_digest(_text_key(instance)))


def on_token_deleted(instance: Any, using: str, **kwargs: Any) -> None:
    """Announce that a user's token has been deleted: gateways look for the sockets it let in."""
    _tell(using, Notice.CHANGED, user_digest(str(instance.user_id)))


def on_session_saved(instance: Any, created: bool, **kwargs: Any) -> None:
    """Remember a new session: the next one to be deleted may be its predecessor."""
    _created.set(instance if created else None)


def on_session_deleted(instance: Any, using: str, **kwargs: Any) -> None:
    """Announce that a session has ended, or continues under another key.

    Anonymous sessions have no sockets. Expired ones have none either by the time that
    ``clearsessions`` deletes them, perhaps a million at once.
    """
    if instance.expire_date <= timezone.now():
        return
    user_id = instance.get_decoded().get(SESSION_KEY)
    if user_id is None:
        return
    successor = _created.get()
    _created.set(None)
    rotated = successor is not None and successor.get_decoded().get(SESSION_KEY) == user_id
    notice = Notice.ROTATED if rotated else Notice.ENDED
    _tell(using, notice, session_digest(instance.session_key))


def _text_key(user: Any) -> str:
    return str(user._meta.pk.value_to_string(user))


def _sessions_alias() -> str | None:
    """Return the database in whose transaction sessions end; None if they are kept elsewhere."""
    model = session_model()
    return None if model is None else router.db_for_write(model)


# -- to the gateways -----------------------------------------------------------------------------


def _tell(alias: str | None, notice: Notice, *digests: str) -> None:
    """Tell every gateway when the transaction on *alias* is committed.

    Django does not run `on_commit` after a commit with autocommit off. There the gateways look
    for themselves whether a session or user is gone, several times; other notices only make
    clients come back, which they may do early.
    """
    connection = None if alias is None else connections[alias]
    if connection is not None and _commits_by_hand(connection):
        if notice in (Notice.ENDED, Notice.CHANGED):
            notice = Notice.UNCOMMITTED
        connection = None
    line = " ".join([notice, *digests])
    if connection is not None and connection.in_atomic_block:
        connection.on_commit(lambda: announcer.say(line), robust=True)
    else:
        announcer.say(line)


def _void_tokens(alias: str, user_id: str) -> None:
    """Refuse a user's tokens from before a new password, once that is committed; never waits."""
    now = time.time()

    def void() -> None:
        try:
            if _has_gateways():
                action = partial(void_tokens, user_id=user_id, now=now)
                announcer.keep(runtime.call_soon(action)).add_done_callback(_on_voided)
        except Exception as exc:  # settings that name no usable broker
            _warn_of_tokens(exc)

    connection = connections[alias]
    if connection.in_atomic_block and not _commits_by_hand(connection):
        connection.on_commit(void, robust=True)
    else:
        void()


def _on_voided(future: concurrent.futures.Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _warn_of_tokens(error)


def _warn_of_tokens(error: BaseException) -> None:
    logger.warning(
        "could not store that a user's tokens are void since the password has changed, so they "
        "stay valid until they expire: %s",
        reason_of(error),
    )


def _commits_by_hand(connection: BaseDatabaseWrapper) -> bool:
    """Say whether autocommit is off, other than by the outermost `atomic` block."""
    if connection.connection is None:  # what it will be
        return not connection.settings_dict["AUTOCOMMIT"]
    if connection.in_atomic_block:
        return not connection.commit_on_exit
    return not connection.autocommit


class Announcer:
    """Takes notices from any thread, and broadcasts them together from the background loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._dropped = 0  # notices that found _lines full
        self._scheduled = False  # a broadcast will take what is in _lines
        self._last: concurrent.futures.Future[None] | None = None  # the broadcast begun last
        self._kept: set[concurrent.futures.Future[None]] = set()  # what else has not ended

    def say(self, line: str) -> None:
        """Broadcast *line* soon; never waits, never raises."""
        with self._lock:
            if len(self._lines) < MAX_PENDING:
                self._lines.append(line)
            else:
                self._dropped += 1
            if self._scheduled:
                return
            self._scheduled = True
        try:
            if _has_gateways():
                self._last = runtime.call_soon(self._broadcast)
                self._last.add_done_callback(self._on_done)
            else:
                self._take()
        except Exception as exc:  # settings that name no usable broker: a logout succeeds even so
            self._give_up(exc)

    def _take(self) -> list[str]:
        with self._lock:
            lines, dropped, self._scheduled = self._lines, self._dropped, False
            self._lines, self._dropped = [], 0
        if dropped:
            _warn(dropped, f"more than {MAX_PENDING} changes waited for the broker")
        return lines

    async def _broadcast(self, broker: Broker) -> None:
        lines = self._take()
        for start in range(0, len(lines), LINES):
            broker.broadcast(TOPIC, "\n".join(lines[start : start + LINES]).encode())

    def _on_done(self, future: concurrent.futures.Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        _warn(len(self._take()), reason_of(error))

    def keep(self, future: concurrent.futures.Future[None]) -> concurrent.futures.Future[None]:
        """Let `finish` wait for *future*, too."""
        self._kept.add(future)
        future.add_done_callback(self._kept.discard)
        return future

    def finish(self) -> None:
        """Wait briefly for notices that have not been sent."""
        last = set() if self._last is None else {self._last}
        concurrent.futures.wait(last | set(self._kept), EXIT_TIMEOUT)


def _warn(count: int, reason: str) -> None:
    logger.warning(
        "could not tell the gateways that %d logins changed, so they find out within "
        "WSGATEWAY_REVALIDATE_INTERVAL: %s",
        count,
        reason,
    )


def _has_gateways() -> bool:
    """Say whether there may be any: where no server runs, saving a user must not start one."""
    if settings.BROKER != "nats" or settings.URL.strip():
        return True
    return settings.debug and embedded_is_running()


def _start_over() -> None:
    global announcer
    announcer = Announcer()


announcer = Announcer()
on_fork(_start_over)
# Registered after the background loop's own end, so it runs before
atexit.register(lambda: announcer.finish())
