"""Write into the outbox: ``python -m tests.service_app.write_outbox USERS EACH [prepare]``.

With "prepare", first make what it needs: its table, and the streams.

Each transaction holds one message a user, and every third one is rolled back. A pause between
them gives who kills relays something to interrupt.
"""

from __future__ import annotations

import sys
import time

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import transaction  # noqa: E402

from wsgateway.outbox import enqueue  # noqa: E402

PAUSE = 0.02
"""Seconds between two transactions."""


class Undone(Exception):
    """Rolls a transaction back."""


def main(users: int, each: int) -> None:
    """Write."""
    for number in range(each):
        time.sleep(PAUSE)
        for rolled_back in (True, False) if number % 3 == 0 else (False,):
            try:
                with transaction.atomic():
                    for user in range(users):
                        text = f"undone {number}" if rolled_back else str(number)
                        enqueue("orders", f"u{user}", text=text)
                    if rolled_back:
                        raise Undone
            except Undone:
                pass


if __name__ == "__main__":
    if "prepare" in sys.argv:
        call_command("migrate", "wsgateway_outbox", verbosity=0)
        call_command("setup_streams")
    main(int(sys.argv[1]), int(sys.argv[2]))
