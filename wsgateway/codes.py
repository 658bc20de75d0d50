"""Moved to `wsgateway.protocol.codes`; this name keeps working for one release."""

from __future__ import annotations

from wsgateway.protocol.codes import *  # noqa: F403
