"""Write into the outbox: ``python -m tests.service_app.write_outbox USERS EACH``.

Each transaction holds one message a user, and every third one is rolled back.
"""

from __future__ import annotations

import sys

import django

django.setup()

from django.db import transaction  # noqa: E402

from wsgateway.outbox import enqueue  # noqa: E402


class Undone(Exception):
    """Rolls a transaction back."""


def main(users: int, each: int) -> None:
    """Write."""
    for number in range(each):
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
    main(int(sys.argv[1]), int(sys.argv[2]))
