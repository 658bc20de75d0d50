"""Which responses an operation has, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from wsgateway.api.problems import KINDS
from wsgateway.api.schemas import ProblemDocument

__all__ = ["with_problems"]

ALWAYS = (401, 403, 422, 429, 500, 503)
WITH_BODY = (400, 411, 413, 415)


def with_problems(
    responses: dict[int, Any], *, body: bool = False, service: bool = True
) -> dict[int, Any]:
    """Return *responses* and the problems that there may be.

    Args:
        responses: What is returned if all is well, by status.
        body: Whether the request has a body.
        service: Whether it names a service, which may not exist.
    """
    statuses = {*ALWAYS, *(WITH_BODY if body else ()), *((404,) if service else ())}
    assert statuses <= {kind.status for kind in KINDS.values()}
    return {**responses, **dict.fromkeys(sorted(statuses), ProblemDocument)}
