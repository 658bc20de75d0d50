"""Code of the documents, for tests that run it as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import ROOT

__all__ = ["DocumentPage"]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
FILE = re.compile(r"`([\w/-]+(?:\.[\w-]+)+)`[^`\n.]*:\s*\Z")


class DocumentPage:
    """A page below ``docs/``.

    Args:
        path: Relative to ``docs/``.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.text = (ROOT / "docs" / path).read_text()

    def code(self, part: str, language: str = "python") -> str:
        """Return the one block of code in *language* that has *part* in it."""
        found = [m[2] for m in BLOCK.finditer(self.text) if m[1] == language and part in m[2]]
        assert len(found) == 1, f"{part!r} is in {len(found)} {language} blocks of {self.path}"
        return found[0]

    def files(self) -> dict[str, str]:
        """Return the files that the page has the reader write, by their names.

        The sentence before a block ends with the file's name and a colon.
        """
        found: dict[str, str] = {}
        for match in BLOCK.finditer(self.text):
            if name := FILE.search(self.text[: match.start()]):
                assert name[1] not in found, f"{self.path} has {name[1]} twice"
                found[name[1]] = match[2]
        return found

    def write_files(self, folder: Path, *names: str) -> None:
        """Write these files below *folder*, or all of them."""
        files = self.files()
        for name in names or files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[name])
