"""A lease: an entry of the roster's bucket that one process writes again before it expires.

Each write names the revision that it replaces, so of two who write, one is refused.
"""

from __future__ import annotations

from wsgateway.broker.lease import Claim, Lease
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import WRONG_LAST_SEQUENCE, ApiError, JetStream
from wsgateway.protocol.subjects import Subjects

__all__ = ["NatsLease"]

KIND = "lease"
"""Keeps the entries apart from those of processes."""


class NatsLease(Lease):
    """See `Lease`.

    Args:
        jetstream: Where the bucket is.
        subjects: Names it and its keys.
        name: Of what it is, one token.
        holder: Who wants it.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects, name: str, holder: str) -> None:
        super().__init__()
        self._jetstream = jetstream
        self._stream = subjects.bucket("roster")
        self._subject = subjects.roster_key(KIND, name)
        self._holder = holder.encode()
        self._revision = 0  # of our entry, as last written; 0: not ours

    async def _claim(self) -> Claim:
        if self._revision and await self._write(self._holder, self._revision):
            return Claim.KEPT
        holder, revision = await self._read()
        if holder not in (b"", self._holder):
            self._revision = 0
            return Claim.REFUSED
        return Claim.TAKEN if await self._write(self._holder, revision) else Claim.REFUSED

    async def _give_up(self) -> None:
        revision, self._revision = self._revision, 0
        if revision:
            await self._write(b"", revision)
            self._revision = 0

    async def _read(self) -> tuple[bytes, int]:
        """Return who holds it, empty if nobody, and the entry's revision."""
        found = await self._jetstream.direct(self._stream, {"last_by_subj": self._subject})
        if not found.replies:
            return b"", 0
        reply = found.replies[0]
        return reply.data, hdrs.find_int(reply.headers, b"Nats-Sequence") or 0

    async def _write(self, holder: bytes, revision: int) -> bool:
        """Replace the entry of *revision*; return False if another was written since."""
        try:
            receipt = await self._jetstream.publish(self._subject, holder, expect_last=revision)
        except ApiError as exc:
            if exc.err_code != WRONG_LAST_SEQUENCE:
                raise
            self._revision = 0
            return False
        self._revision = receipt.offset
        return True
