"""What JetStream, or somebody in its place, answers: a receipt, or an error of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.broker.messages import Receipt
from wsgateway.broker.nats.jetstream import ApiError, PeerOffline, error_of, receipt_of
from wsgateway.exceptions import (
    BrokerError,
    BrokerUnavailable,
    MessageRefused,
    MessageTooBig,
    QueueFull,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
fields = st.sampled_from(["error", "seq", "duplicate", "code", "err_code", "description"])
answers = st.one_of(
    st.binary(max_size=40),
    values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(fields, values).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(fields, values).map(lambda value: json.dumps({"error": value}).encode()),
)


@given(answers)
def test_answer_to_a_publish_is_a_receipt_or_an_error_of_ours(data: bytes) -> None:
    """Somebody who subscribes to the subject may answer first, with whatever it is."""
    try:
        receipt = receipt_of(data, 1)
    except BrokerError:
        return
    assert isinstance(receipt, Receipt)
    assert isinstance(receipt.offset, int)
    assert isinstance(receipt.duplicate, bool)


@pytest.mark.parametrize(
    ("code", "err_code", "text", "kind"),
    [
        (400, 10002, "resource limits exceeded for account", QueueFull),
        (503, 10023, "insufficient resources", QueueFull),
        (500, 10028, "insufficient memory resources available", QueueFull),
        (500, 10047, "insufficient storage resources available", QueueFull),
        (503, 10077, "maximum messages per subject exceeded", QueueFull),
        (503, 10077, "stream store failed", BrokerUnavailable),
        (503, 10008, "JetStream system temporarily unavailable", BrokerUnavailable),
        (400, 10054, "message size exceeds maximum allowed", MessageTooBig),
        (400, 10097, "header size exceeds maximum allowed of 64k", MessageRefused),
        (400, 10165, "invalid per-message TTL", MessageRefused),
        (400, 10071, "wrong last sequence: 1", ApiError),
        (409, 10158, "duplicate message id is in process", BrokerUnavailable),
        (400, 10005, "no suitable peers for placement, peer offline", PeerOffline),
        (400, 10005, "no suitable peers for placement", ApiError),
        (400, 10005, "no suitable peers for placement, insufficient storage", ApiError),
        (
            400,
            10005,
            "no suitable peers for placement, peer offline, insufficient storage",
            ApiError,
        ),
    ],
)
def test_error_says_whether_another_try_helps(
    code: int, err_code: int, text: str, kind: type[Any]
) -> None:
    assert type(error_of({"code": code, "err_code": err_code, "description": text})) is kind
