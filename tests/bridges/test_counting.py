"""The count of what came notices what the docs do not allow."""

from __future__ import annotations

import pytest

from tests.bridges.counting import Came, in_order


def test_message_may_come_again_before_the_next_one() -> None:
    messages = [("ann", 0, "a"), ("bob", 0, "b"), ("ann", 0, "a"), ("ann", 1, "c")]
    assert in_order(messages, repeats=1) == {"ann": [0, 1], "bob": [0]}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([("ann", 0, "a"), ("ann", 0, "b")], "with another id"),
        ([("ann", 0, "a"), ("ann", 1, "b"), ("ann", 0, "a")], "0 came again after 1"),
        ([("ann", 0, "a"), ("ann", 0, "a"), ("ann", 0, "a")], "more than 1 came again"),
        ([("ann", 0, "a"), ("bob", 0, "a")], "share an id"),
    ],
)
def test_what_is_not_allowed_is_noticed(messages: list[Came], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        in_order(messages, repeats=1)
