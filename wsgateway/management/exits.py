"""With which code a command ends, for scripts; docs/reference/commands.md lists them."""

from __future__ import annotations

import enum

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from wsgateway.exceptions import (
    BrokerUnavailable,
    BusUnavailable,
    MessageTooBig,
    NameRefused,
    WsGatewayError,
)

__all__ = ["EXPECTED", "Exit", "command_error"]


class Exit(enum.IntEnum):
    """Why a command failed."""

    FAILED = 1
    """It could not be done, or not all of it; the text says why."""
    USAGE = 2
    """The arguments are wrong. Nothing was done."""
    UNAVAILABLE = 3
    """No answer from the broker, or from the bus of a bridge. Try again."""
    UNKNOWN = 4
    """What was named does not exist: a service, a gateway, an offset."""
    INCOMPLETE = 5
    """Somebody who must answer did not, so the result may lack something."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXPECTED = (WsGatewayError, ImproperlyConfigured)
"""Errors whose text tells an operator what to do: no traceback is needed."""


def command_error(error: Exception) -> CommandError:
    """Return what a command raises for *error*."""
    return CommandError(str(error), returncode=_exit(error))


def _exit(error: Exception) -> Exit:
    if isinstance(error, BrokerUnavailable | BusUnavailable):
        return Exit.UNAVAILABLE
    if isinstance(error, LookupError):
        return Exit.UNKNOWN
    is_usage = not isinstance(error, WsGatewayError) or isinstance(
        error, NameRefused | MessageTooBig
    )
    return Exit.USAGE if is_usage and isinstance(error, ValueError) else Exit.FAILED
