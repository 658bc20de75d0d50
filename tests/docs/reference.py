"""Write the parts of docs/reference that the code knows best: ``make reference``.

``settings.md`` has a heading for each group of settings. What stands between the heading and the
first setting is written by hand; the settings come from ``wsgateway/conf.py``.
"""

from __future__ import annotations

import re
from typing import Any

import django

from tests.support import ROOT
from wsgateway.conf import GROUPS
from wsgateway.setting import Setting

PERIODS = {"day": 86400, "hour": 3600, "minute": 60}
SIZES = {"MiB": 2**20, "MB": 10**6}
HAND_WRITTEN = r"(?P<intro>(?:(?!^##).*\n)*)"
GENERATED = r"(?:^### `[A-Z_]+`\n(?:(?!^##).*\n)*)*"


def number(value: float) -> float:
    """Return a whole number without its decimal point."""
    return int(value) if value == int(value) else value


def duration(value: float) -> str:
    """Return a duration as people say it, and as the settings have it."""
    for unit, period in PERIODS.items():
        if value >= period and value % period == 0:
            return f"{plural(value / period, unit)} (`{number(value)}`)"
    return plural(value, "second")


def plural(value: float, unit: str) -> str:
    return f"{number(value)} {unit}{'' if value == 1 else 's'}"


def size(value: int) -> str:
    """Return a number of bytes as people say it, and as the settings have it."""
    for unit, factor in SIZES.items():
        if value > 0 and value % factor == 0:
            return f"{value // factor} {unit} (`{value}`)"
    return f"`{value}`"


def default(setting: Setting[Any]) -> str:
    """Return a setting's default as its entry shows it."""
    value = setting.default
    if setting.unit == "seconds":
        return duration(value)
    if setting.unit == "bytes":
        return size(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{number(value):,}"
    return f"`{value!r}`" if value != "" else "empty"


def entry(setting: Setting[Any]) -> str:
    """Return what the page says about one setting."""
    return f"### `{setting.name}`\n\nDefault: {default(setting)}\\\n{setting.doc}.\n\n"


def settings_page(page: str) -> str:
    """Return the text of ``settings.md`` with the settings as they are in the code."""
    for group in GROUPS:
        pattern = rf"^## {re.escape(group.title)}\n{HAND_WRITTEN}{GENERATED}"
        found = re.search(pattern, page, re.MULTILINE)
        if found is None:
            raise LookupError(f"docs/reference/settings.md needs a section '## {group.title}'")
        text = f"## {group.title}\n{found['intro']}{''.join(map(entry, group.settings))}"
        page = f"{page[: found.start()]}{text}{page[found.end() :]}"
    return page


def openapi_file(text: str) -> str:
    """Return the OpenAPI document of the server API."""
    from tests.docs import server_api  # imports models

    return server_api.openapi_file()


def server_api_page(text: str) -> str:
    """Return the text of ``server-api.md`` with what the OpenAPI document says."""
    from tests.docs import server_api

    return server_api.page(text)


PAGES = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/openapi.json": openapi_file,
    "docs/reference/server-api.md": server_api_page,
}
"""The pages that have generated parts, and what returns a page's new text."""


def main() -> None:
    """Write the pages."""
    django.setup()
    for name, renew in PAGES.items():
        path = ROOT / name
        path.write_text(renew(path.read_text() if path.exists() else ""))


if __name__ == "__main__":
    main()
