"""Decorators for the package's asynchronous views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.db import connections, transaction

__all__ = ["never_atomic"]

View = TypeVar("View", bound=Callable[..., Any])


def never_atomic(view: View) -> View:
    """Exempt *view* from ATOMIC_REQUESTS, which Django refuses to asynchronous views with a 500.

    Django's own decorator does this for one database, and each of them may have ATOMIC_REQUESTS.
    """
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view
