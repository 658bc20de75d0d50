"""Django logins: who is logged in, and whether a login from some time ago still holds.

Everything here reads the database or the cache: call it in a thread. Questions about many logins
are batched: one query for the users, one for the sessions. They go to the database that writes go
to, because a replica may not know yet what has just been revoked.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.contrib.sessions.backends import cache, cached_db, db, signed_cookies
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist, ValidationError
from django.db import InterfaceError, OperationalError, router
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from wsgateway.conf import settings
from wsgateway.hooks import call_hook_in_thread, get_resolver
from wsgateway.protocol.codes import CloseCode

if TYPE_CHECKING:
    from wsgateway.identity import Identity

__all__ = [
    "account_of",
    "can_end_sessions",
    "end_sessions",
    "logged_in_user",
    "reasons_to_close",
    "session_model",
    "session_store",
    "sessions_are_cookies",
    "token_account",
    "user_id_of",
    "user_models",
    "user_with_id",
]

logger = logging.getLogger("wsgateway")

UNKNOWN = object()
"""Stands for a user about whom the backend cannot say anything now."""
UserKey = tuple[str | None, str]
"""Dotted path of the authentication backend, if known, and the primary key as text."""


def session_store() -> Any:
    """Return the ``SessionStore`` class of SESSION_ENGINE."""
    return import_module(settings.session_engine).SessionStore


def sessions_are_cookies() -> bool:
    """Say whether a session is kept in its cookie only, so that nobody can end it."""
    return issubclass(session_store(), signed_cookies.SessionStore)


# -- at the handshake --------------------------------------------------------------------------


def logged_in_user(session: Any) -> Any:
    """Return the user who is logged in with *session*, or None.

    As Django's ``get_user``, but a session that does not hold is left alone: a handshake cannot
    give the browser another cookie.
    """
    try:
        user_id, path = _primary_key(session[SESSION_KEY]), session[BACKEND_SESSION_KEY]
    except (KeyError, ValidationError):
        return None
    if path not in settings.authentication_backends:
        return None
    user = load_backend(path).get_user(user_id)
    if hasattr(user, "get_session_auth_hash"):
        given = session.get(HASH_SESSION_KEY)
        if not given or not _hash_holds(user, given):
            return None
    return user


def user_id_of(user: Any) -> str | None:
    """Return a user's primary key as text; None if *user* is not stored as a Django user."""
    if not isinstance(user, get_user_model()) or user.pk is None:
        return None
    return str(user._meta.pk.value_to_string(user))


def account_of(user: Any, session: Any) -> dict[str, Any]:
    """Return what an `Identity` remembers of *user*, so that the socket ends with the login.

    Reads nothing: a session that has not been loaded stays unloaded.
    """
    user_id = user_id_of(user)
    if user_id is None:
        return {}
    get_hash = getattr(user, "get_session_auth_hash", None)
    return {
        "user_id": user_id,
        "auth_hash": get_hash() if get_hash else None,
        "backend": session.get(BACKEND_SESSION_KEY) if session.accessed else None,
    }


def user_with_id(user_id: str | None) -> Any:
    """Return the user with this primary key as text, if they may log in; None without."""
    key = None, user_id or ""
    return _users([key]).get(key)


def token_account(user: Any) -> dict[str, Any] | None:
    """Return what an `Identity` remembers of *user*; None if they may not log in.

    For users whom a token names: no session ends, but the user and their password may.
    """
    user_id = user_id_of(user)
    if user_id is None or not _is_active(user):
        return None
    get_hash = getattr(user, "get_session_auth_hash", None)
    return {"user_id": user_id, "auth_hash": get_hash() if get_hash else None}


def _primary_key(user_id: str) -> Any:
    """Return the value of a user's primary key that a session holds as text."""
    field = get_user_model()._meta.pk
    assert field is not None
    return field.to_python(user_id)


def _hash_holds(user: Any, given: str) -> bool:
    """Say whether *given* is the user's session auth hash, by SECRET_KEY or an older one."""
    if constant_time_compare(given, user.get_session_auth_hash()):
        return True
    older = getattr(user, "get_session_auth_fallback_hash", tuple)
    return any(constant_time_compare(given, value) for value in older())


# -- later ---------------------------------------------------------------------------------------


def reasons_to_close(identities: Sequence[Identity]) -> list[CloseCode | None]:
    """Return for each identity why its socket must close; None if its login holds.

    A session that is gone may have been rotated, so its client is told to come back: with a new
    cookie it gets in, without one it is refused.
    """
    sessions = _lost_sessions({i.session_key for i in identities if i.session_key})
    users = _users({(i.backend, i.user_id) for i in identities if i.user_id is not None})
    lost = _lost_credentials({i.credential for i in identities if i.credential is not None})
    return [
        CloseCode.NOT_AUTHENTICATED
        if identity.credential in lost
        else _reason(identity, sessions, users)
        for identity in identities
    ]


def _reason(
    identity: Identity, sessions: Mapping[str, CloseCode], users: Mapping[UserKey, Any]
) -> CloseCode | None:
    user = None
    if identity.user_id is not None:
        user = users.get((identity.backend, identity.user_id))
        if user is None:
            return CloseCode.NOT_AUTHENTICATED
    if identity.session_key is not None and identity.session_key in sessions:
        return sessions[identity.session_key]
    if user is None or user is UNKNOWN:
        return None
    if identity.auth_hash is not None and not _hash_holds(user, identity.auth_hash):
        # With sessions in cookies the browser may have another one by now
        changed = sessions_are_cookies()
        return CloseCode.CREDENTIALS_CHANGED if changed else CloseCode.NOT_AUTHENTICATED
    return CloseCode.CREDENTIALS_CHANGED if _is_renamed(user, identity) else None


def _is_renamed(user: Any, identity: Identity) -> bool:
    """Say whether the resolver calls the user by another name now: this inbox may be another's."""
    if not identity.resolver:
        return False
    user_name = getattr(get_resolver(identity.resolver), "user_name", None)
    if user_name is None:
        return False
    try:
        return bool(call_hook_in_thread(user_name, user) != identity.user)
    except ObjectDoesNotExist:  # they have no name any more
        return True
    except (InterfaceError, OperationalError):  # asked again later
        raise
    except Exception:  # one user's must not keep the others from being asked about
        logger.warning(
            "%s.user_name failed",
            identity.resolver,
            exc_info=True,
            extra={"service": identity.service, "user": identity.user},
        )
        return False


def _users(keys: Iterable[UserKey]) -> dict[UserKey, Any]:
    """Return the users that exist and may log in."""
    found: dict[UserKey, Any] = {}
    by_backend: dict[str | None, set[str]] = {}
    for path, user_id in keys:
        by_backend.setdefault(path, set()).add(user_id)
    for path, user_ids in by_backend.items():
        backend = load_backend(path) if path is not None else None
        if backend is None or _reads_the_table(backend):
            may_log_in = getattr(backend, "user_can_authenticate", _is_active)
            users = {key: user for key, user in _in_table(user_ids).items() if may_log_in(user)}
        else:
            users = {key: user for key in user_ids if (user := _ask(backend, key)) is not None}
        found.update({(path, key): user for key, user in users.items()})
    return found


def _reads_the_table(backend: Any) -> bool:
    from django.contrib.auth.backends import ModelBackend

    return type(backend).get_user is ModelBackend.get_user


def _is_active(user: Any) -> bool:
    return bool(getattr(user, "is_active", True))


def _in_table(user_ids: Iterable[str]) -> dict[str, Any]:
    model = get_user_model()
    values = {}
    for user_id in user_ids:
        with contextlib.suppress(ValidationError):  # nobody has such a key
            values[_primary_key(user_id)] = user_id
    users = model._default_manager.using(router.db_for_write(model)).in_bulk(values)
    return {values[value]: user for value, user in users.items()}


def _ask(backend: Any, user_id: str) -> Any:
    """Ask a backend with a ``get_user`` of its own; one that fails ends no socket."""
    try:
        return backend.get_user(_primary_key(user_id))
    except Exception:
        logger.warning("%s.get_user failed", type(backend).__name__, exc_info=True)
        return UNKNOWN


def _lost_credentials(credentials: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those whose rows have been deleted."""
    by_model: dict[str, set[str]] = {}
    for label, key in credentials:
        by_model.setdefault(label, set()).add(key)
    lost: set[tuple[str, str]] = set()
    for label, keys in by_model.items():
        model = apps.get_model(label)
        rows = model._default_manager.using(router.db_for_write(model)).filter(pk__in=keys)
        kept = {str(key) for key in rows.values_list("pk", flat=True)}
        lost |= {(label, key) for key in keys - kept}
    return lost


def _lost_sessions(keys: set[str]) -> dict[str, CloseCode]:
    """Return the sessions that have ended, each with the close code of its sockets."""
    if not keys:
        return {}
    store = session_store()
    if store.load is db.SessionStore.load:
        return _lost_rows(store, keys)
    if store.load in (cache.SessionStore.load, cached_db.SessionStore.load):
        names = {store.cache_key_prefix + key: key for key in keys}
        keys = keys - {names[name] for name in caches[settings.session_cache].get_many(names)}
        if keys and store.load is cached_db.SessionStore.load:
            return _lost_rows(store, keys)
        return dict.fromkeys(keys, CloseCode.CREDENTIALS_CHANGED)
    return {key: CloseCode.CREDENTIALS_CHANGED for key in keys if not store(key).load()}


def _lost_rows(store: Any, keys: set[str]) -> dict[str, CloseCode]:
    model = store.get_model_class()
    rows = model._default_manager.using(router.db_for_write(model)).filter(session_key__in=keys)
    expiry = dict(rows.values_list("session_key", "expire_date"))
    now = timezone.now()
    lost = {}
    for key in keys:
        if key not in expiry:
            lost[key] = CloseCode.CREDENTIALS_CHANGED
        elif expiry[key] <= now:
            lost[key] = CloseCode.NOT_AUTHENTICATED
    return lost


def session_model() -> Any:
    """Return the model of SESSION_ENGINE's sessions; None if they are kept elsewhere."""
    store = session_store()
    if not issubclass(store, db.SessionStore):
        return None
    try:
        return store.get_model_class()
    except RuntimeError:  # its app is not installed
        return None


def can_end_sessions() -> bool:
    """Say whether `end_sessions` can find sessions: only a database can be asked for them."""
    return session_model() is not None


def end_sessions(user: Any) -> int:
    """End all sessions of a Django user; return how many. Reads every session there is."""
    model, store, user_id = session_model(), session_store(), user_id_of(user)
    rows = model._default_manager.using(router.db_for_write(model))
    rows = rows.filter(expire_date__gt=timezone.now())
    ended = [
        row.session_key for row in rows.iterator() if row.get_decoded().get(SESSION_KEY) == user_id
    ]
    for key in ended:
        store(key).delete(key)  # from the cache too, and Django signals it
    return len(ended)


def user_models() -> list[Any]:
    """Return the user model and its subclasses: Django sends signals for each by itself."""
    try:
        model = get_user_model()
    except ImproperlyConfigured:  # a project without users
        return []
    return [found for found in apps.get_models() if issubclass(found, model)]
