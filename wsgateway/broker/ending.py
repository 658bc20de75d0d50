"""Whether this process is about to end, and with it the server that development started for it."""

from __future__ import annotations

import atexit
import os
import sys

from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

__all__ = ["is_ending", "note_end", "reloader"]

_STARTED = os.getpid(), os.getppid()  # this process and its parent when this was imported

_ending: int | None = None  # the id of the process that is exiting; a fork of it is not


def reloader() -> int | None:
    """Return the id of Django's reloader, if that started this process; it outlives reloads."""
    is_reloaded = os.environ.get(DJANGO_AUTORELOAD_ENV) == "true" and sys.platform != "win32"
    return os.getppid() if is_reloaded else None


def note_end() -> None:
    """Record that this process is exiting."""
    global _ending
    _ending = os.getpid()


def is_ending() -> bool:
    """Say whether a connection that is lost now was lost because the process ends.

    Ctrl-C ends Django's reloader first. The server of development ends with it, before the process
    that it had started has closed its connections.
    """
    if _ending == os.getpid():
        return True
    pid, parent = _STARTED
    return pid == os.getpid() and reloader() not in (None, parent)


atexit.register(note_end)
