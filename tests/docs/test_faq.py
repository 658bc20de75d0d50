"""docs/explanation/faq.md: questions, with short answers whose numbers are the defaults."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT
from wsgateway.conf import SETTINGS
from wsgateway.layer import NatsChannelLayer

PAGE = (ROOT / "docs/explanation/faq.md").read_text()
ANSWERS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.S | re.M))


def test_there_are_twenty_questions() -> None:
    assert len(ANSWERS) >= 20


@pytest.mark.parametrize("question", ANSWERS)
def test_question_has_a_short_answer(question: str) -> None:
    assert question.endswith("?")
    assert 5 < len(ANSWERS[question].split()) < 100


@pytest.mark.parametrize(
    ("part", "number", "text"),
    [
        (
            "Can a message get lost",
            SETTINGS["WSGATEWAY_INBOX_MAX_AGE"].default / 86400,
            "{:g} days",
        ),
        ("Can a message get lost", SETTINGS["WSGATEWAY_INBOX_MAX_MESSAGES"].default, "{:,}"),
        ("`is_online` return", SETTINGS["WSGATEWAY_ROSTER_TTL"].default, "{:g} seconds"),
        ("150 messages at once", NatsChannelLayer().capacity, "{} by default"),
    ],
)
def test_number_is_the_default(part: str, number: float, text: str) -> None:
    (answer,) = (ANSWERS[question] for question in ANSWERS if part in question)
    assert text.format(number) in " ".join(answer.split())
