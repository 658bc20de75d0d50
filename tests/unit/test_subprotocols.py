"""The token in the list of subprotocols."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.protocol.subprotocols import TOKEN_PREFIX, encode_token_protocol, tokens_in
from wsgateway.protocol.v1 import choose_subprotocol

VISIBLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


@given(VISIBLE)
def test_token_arrives_as_it_was(token: str) -> None:
    offer = encode_token_protocol(token)
    assert all(char.isalnum() or char in "._-" for char in offer), "a token of RFC 9110"
    assert tokens_in(["wsgateway.v1", offer]) == [token]
    padded = offer + "=" * (-len(offer.removeprefix(TOKEN_PREFIX)) % 4)
    assert tokens_in([padded]) == [token]


@pytest.mark.parametrize("text", ["", "=", "a", "a b", "ü", "YQ===", "_w", "a+b/", "YQ\n"])
def test_what_is_not_base64url_of_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        tokens_in([TOKEN_PREFIX + text])


@given(st.text())
def test_any_offer_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(token, str) for token in tokens_in([TOKEN_PREFIX + text]))


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["wsgateway.token.YQ", "wsgateway.v1"], "wsgateway.v1"),
        (["wsgateway.token.YQ", "wsgateway.raw"], "wsgateway.raw"),
        (["wsgateway.raw", "wsgateway.token.YQ", "wsgateway.v1"], "wsgateway.v1"),
        (["wsgateway.token.YQ"], None),
    ],
)
def test_the_token_itself_is_never_selected(offered: list[str], chosen: str | None) -> None:
    assert choose_subprotocol(offered) == chosen
