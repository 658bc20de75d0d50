"""What a stream numbers its messages with, and how it knows one that it has already."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from wsgateway.broker.messages import Receipt

__all__ = ["Sequence"]


@dataclass
class Sequence:
    """The offsets and the message ids of one stream."""

    last: int = 0
    ids: dict[str, tuple[int, float]] = field(default_factory=dict)

    def known(self, msg_id: str | None) -> Receipt | None:
        """Return the receipt of an earlier message with this id."""
        now = time.monotonic()
        while self.ids:
            oldest = next(iter(self.ids))
            if self.ids[oldest][1] > now:
                break
            del self.ids[oldest]
        if msg_id is None or msg_id not in self.ids:
            return None
        return Receipt(self.ids[msg_id][0], True)

    def next(self, msg_id: str | None, window: float) -> int:
        """Return the next offset; remember *msg_id* with it for *window* seconds."""
        self.last += 1
        if msg_id is not None:
            self.ids[msg_id] = (self.last, time.monotonic() + window)
        return self.last
