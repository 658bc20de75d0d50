"""An animated picture of a page, light and dark, made of screenshots."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from tests.acceptance.browser import Page

__all__ = ["Film"]

WIDTH, HEIGHT = 960, 880
FOLD = """
document.querySelectorAll('details').forEach((each) => { each.open = false; });
scrollTo(0, 0);
"""
CLIP = """
(() => {
  const { top, bottom } = document.querySelector('#panels').getBoundingClientRect();
  return [Math.floor(top) - 8, Math.ceil(bottom) + 8];
})()
"""


class Film:
    """Pictures of the demo's panels, which `make screenshots` wants; otherwise it does nothing.

    Args:
        name: The file's, in the folder that DOCS_IMAGES names: ``name.webp``, ``name-dark.webp``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder = os.environ.get("DOCS_IMAGES")
        self._frames: dict[bool, list[Image.Image]] = {False: [], True: []}
        self._durations: list[int] = []

    @property
    def is_wanted(self) -> bool:
        """Whether somebody is to see it."""
        return self._folder is not None

    async def shoot(self, page: Page, duration: int, folder: Path) -> None:
        """Add a frame that is shown for *duration* ms; *folder* is for files in between."""
        if not self.is_wanted:
            return
        await page.run(FOLD)
        path = folder / "frame.png"
        for dark, frames in self._frames.items():
            await page.screenshot(path, WIDTH, HEIGHT, dark=dark)
            top, bottom = await page.run(CLIP)
            with Image.open(io.BytesIO(path.read_bytes())) as picture:
                frame = picture.convert("RGB").crop((0, top, WIDTH, bottom))
            first = frames[0] if frames else frame
            frames.append(frame.crop((0, 0, *first.size)))
        self._durations.append(duration)

    def save(self) -> None:
        """Write the files."""
        if self._folder is None:
            return
        for dark, (first, *rest) in self._frames.items():
            first.save(
                Path(self._folder) / f"{self._name}{'-dark' if dark else ''}.webp",
                save_all=True,
                append_images=rest,
                duration=self._durations,
                loop=0,
                quality=82,
                method=4,
                minimize_size=True,
            )
