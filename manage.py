#!/usr/bin/env python
"""Django's command line for this site.

Without DEBUG in the environment this is a production site, whatever the command is. One command
says by its name that it is for development: ``rungateway``, which ``make run`` runs.
"""

from __future__ import annotations

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    if sys.argv[1:2] == ["rungateway"] and not os.environ.get("SECRET_KEY"):
        os.environ.setdefault("DEBUG", "1")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as exc:  # one line for the operator, not a page
        raise SystemExit(f"cannot start: {exc}") from exc


if __name__ == "__main__":
    main()
