"""Moved to `wsgateway.protocol.subjects`; this name keeps working for one release."""

from __future__ import annotations

from wsgateway.protocol.subjects import *  # noqa: F403
