"""The actions of ``manage.py gateway``, a module each."""

from __future__ import annotations
