"""What went wrong, as text that fits where it goes. Pure; never raises, whatever it is given.

What a handler raises may hold anything that a client sent: lone surrogates, line breaks, terminal
codes, megabytes; and its ``__str__`` may raise.
"""

from __future__ import annotations

import re
import traceback
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import quote

__all__ = ["Repeats", "clip", "code_word", "fit", "one_line", "trace"]

MAX_LINE = 500
"""Characters of an exception's text where one line is wanted."""
MAX_TRACE = 16_000
"""Characters of a traceback that are kept: its beginning and its end."""
MAX_CODE = 64
_SAFE = " '\"()[]{}<>:;,.!?=/*+-_@#$&"


class Repeats:
    """Tells an error that a message has failed with before from a new one.

    Args:
        limit: Messages that are remembered.
    """

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._last: OrderedDict[str, tuple[object, ...]] = OrderedDict()  # by message

    def is_new(self, message: str, error: BaseException) -> bool:
        """Say whether *message* last failed otherwise, or not here; its type and place count."""
        place = (type(error), *_place(error))
        if self._last.get(message) == place:
            return False
        self._last[message] = place
        self._last.move_to_end(message)
        if len(self._last) > self._limit:
            self._last.popitem(last=False)
        return True


def _place(error: BaseException) -> tuple[object, ...]:
    """Return where an error was raised: the file and the line."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return () if frame is None else (frame.tb_frame.f_code.co_filename, frame.tb_lineno)


def one_line(error: BaseException) -> str:
    """Return type and text of *error* in one printable line."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    text = _safely(lambda: str(error)[: 4 * MAX_LINE])
    return _printable(clip(" ".join(f"{name}: {text}".split()) if text else name, MAX_LINE))


def trace(error: BaseException) -> str:
    """Return the traceback of *error*."""
    text = _safely(lambda: "".join(traceback.format_exception(error)))
    return _printable(clip(text, MAX_TRACE))


def _safely(make: Callable[[], str]) -> str:
    try:
        return make()
    except BaseException as exc:  # a handler's exception may do anything, SystemExit included
        return f"(cannot be shown: {type(exc).__name__})"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def clip(text: str, limit: int) -> str:
    """Return *text* as valid Unicode, without its middle if it has more than *limit* characters."""
    if len(text) > limit:
        head, tail = text[: limit // 2], text[len(text) - limit // 2 :]
        text = f"{head} … {len(text) - len(head) - len(tail)} characters left out … {tail}"
    return text.encode("utf-8", "backslashreplace").decode()


def code_word(code: object) -> str:
    """Return *code* as one word that a header can hold."""
    text = _safely(lambda: str(code)[:MAX_CODE])
    return re.sub(r"[^\w.:-]+", "_", text) or "rejected"


def fit(text: str, limit: int) -> str:
    """Return *text* percent-encoded for a header, shortened to *limit* bytes at most."""
    keep, encoded = len(text), quote(clip(text, len(text)), safe=_SAFE)
    while len(encoded) > limit:
        if keep == 0:
            return ""
        keep = max(0, min(keep - 1, keep * limit // len(encoded) - 20))
        encoded = quote(clip(text, keep), safe=_SAFE)
    return encoded
