#!/usr/bin/env python
"""Django's command line for this site.

Where no SECRET_KEY is set, this is a developer's clone: DEBUG is on unless it says otherwise.
A server has a SECRET_KEY, so there nothing is ever switched on by accident.
"""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    if not os.environ.get("SECRET_KEY"):
        os.environ.setdefault("DEBUG", "1")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
