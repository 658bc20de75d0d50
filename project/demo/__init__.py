"""The demonstration: part of the site, never of the package ``wsgateway``."""

from __future__ import annotations
