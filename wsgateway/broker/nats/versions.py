"""Which nats-py was tried. Imports nothing of it: another one may lack what we need."""

from __future__ import annotations

from importlib.metadata import version

from wsgateway.exceptions import BrokerMisconfigured

__all__ = ["TRIED", "require_tried_version"]

TRIED = "2.16"
"""The minor version of nats-py whose private details `handshake` uses; as in pyproject.toml."""


def require_tried_version() -> None:
    """Refuse a nats-py whose private details nobody has looked at.

    Raises:
        BrokerMisconfigured: It is another minor version.
    """
    installed = version("nats-py")
    if not installed.startswith(f"{TRIED}."):
        raise BrokerMisconfigured(
            f"nats-py {installed} is installed, but this version of wsgateway was only tried with "
            f"nats-py {TRIED}; run: pip install 'nats-py[nkeys]=={TRIED}.*'"
        )
