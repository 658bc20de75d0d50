"""JSON web tokens: every algorithm, every claim, and everything that must not get in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.unit.test_checks import messages
from tests.unit.test_identity import scope
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity import (
    Identity,
    JwtIdentity,
    JwtUserIdentity,
    TokenIdentity,
    jwks,
    make_token,
    resolve_identity,
)
from wsgateway.identity.jwks import KeySet, KeysUnavailable, KeyUnknown
from wsgateway.identity.jwt_keys import ALGORITHMS, keys_of_jwks
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subprotocols import encode_token_protocol

SECRET = "a secret of more than sixty-four bytes, as HS512 wants it to be: yes, indeed"
CURVES: dict[str, Any] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
    "ES256K": ec.SECP256K1(),
}
RSA_KEY = rsa.generate_private_key(65537, 2048)


def private_key(algorithm: str) -> Any:
    if algorithm.startswith("HS"):
        return SECRET
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else RSA_KEY


def pem(private: Any) -> str:
    """Return what a setting holds for *private*."""
    if isinstance(private, str):
        return private
    data = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return str(data.decode())


def token(
    key: Any = SECRET, algorithm: str = "HS256", *, kid: str | None = None, **claims: Any
) -> str:
    headers = None if kid is None else {"kid": kid}
    claims = {"sub": "ann", "exp": time.time() + 60, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers)


def handshake(text: str, **options: Any) -> dict[str, Any]:
    bearer = [(b"authorization", b"Bearer " + text.encode())]
    return scope(headers=bearer, **{"service": "orders", **options})


async def refused(text: str, resolver: Any = None, **options: Any) -> IdentityRefused:
    with pytest.raises(IdentityRefused) as caught:
        await (resolver or JwtIdentity()).resolve(handshake(text, **options))
    assert text not in f"{caught.value.reason} {caught.value.explanation}"
    return caught.value


@pytest.fixture(autouse=True)
def secret(settings: Any) -> Any:
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.JwtIdentity"]
    settings.WSGATEWAY_JWT_ALGORITHMS = ["HS256"]
    settings.WSGATEWAY_JWT_KEYS = [SECRET]
    settings.WSGATEWAY_JWT_LEEWAY = 5.0
    return settings


# -- keys and algorithms ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_each_algorithm_with_a_key_of_its_own(settings: Any, algorithm: str) -> None:
    key, other = private_key(algorithm), private_key(algorithm)
    settings.WSGATEWAY_JWT_ALGORITHMS = [algorithm]
    settings.WSGATEWAY_JWT_KEYS = [pem(key)]
    assert messages() == {}
    found = await JwtIdentity().resolve(handshake(token(key, algorithm)))
    assert found == Identity("orders", "ann")
    if other != key:
        assert (await refused(token(other, algorithm))).code is CloseCode.NOT_AUTHENTICATED
    good = token(key, algorithm)
    middle = len(good) - 10
    forged = good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :]
    assert (await refused(forged)).code is CloseCode.NOT_AUTHENTICATED


async def test_ed448_is_eddsa_too(settings: Any) -> None:
    key = ed448.Ed448PrivateKey.generate()
    settings.WSGATEWAY_JWT_ALGORITHMS = ["EdDSA"]
    settings.WSGATEWAY_JWT_KEYS = [pem(key)]
    assert await JwtIdentity().resolve(handshake(token(key, "EdDSA")))


async def test_any_of_several_keys_may_have_signed(settings: Any) -> None:
    """So a secret or key is replaced without a moment at which nobody gets in."""
    settings.WSGATEWAY_JWT_KEYS = ["another secret that is long enough for HS256", SECRET]
    assert await JwtIdentity().resolve(handshake(token()))


def part(value: Any) -> str:
    data = json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


CLAIMS = {"sub": "ann", "exp": 9e9}


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 7, ["HS256"]])
async def test_token_without_a_signature_is_refused(settings: Any, algorithm: Any) -> None:
    unsigned = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(CLAIMS)}."
    assert (await refused(unsigned)).code is CloseCode.NOT_AUTHENTICATED


async def test_public_key_is_never_an_hmac_secret(settings: Any) -> None:
    """The oldest attack on JWT: sign with HS256, and the public key, which everybody has."""
    settings.WSGATEWAY_JWT_ALGORITHMS = ["RS256", "HS256"]
    settings.WSGATEWAY_JWT_KEYS = [pem(RSA_KEY)]
    signed = f"{part({'alg': 'HS256'})}.{part(CLAIMS)}"
    for secret in (pem(RSA_KEY), pem(RSA_KEY).strip()):
        digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
        forged = f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
        assert (await refused(forged)).code is CloseCode.NOT_AUTHENTICATED
    assert await JwtIdentity().resolve(handshake(token(RSA_KEY, "RS256")))


async def test_only_the_algorithms_that_are_listed(settings: Any) -> None:
    settings.WSGATEWAY_JWT_ALGORITHMS = ["RS256"]
    settings.WSGATEWAY_JWT_KEYS = [pem(RSA_KEY)]
    told = await refused(token(RSA_KEY, "PS256"))
    assert "its algorithm 'PS256' is not in WSGATEWAY_JWT_ALGORITHMS" in told.explanation
    assert told.reason == "the token is not valid"


# -- claims ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "cause"),
    [
        ({"exp": time.time() - 3000}, "the token has expired"),
        ({"exp": None}, "it has no claim 'exp'"),
        ({"exp": "soon"}, "PyJWT raised"),
        ({"nbf": time.time() + 3000}, "it is not valid yet"),
        ({"iat": time.time() + 3000}, "it is not valid yet"),
        ({"aud": "other"}, "it is for another audience"),
        ({"aud": None}, "it has no claim 'aud'"),
        ({"iss": "other"}, "it is for another issuer"),
        ({"iss": None}, "it has no claim 'iss'"),
        ({"sub": None}, "its claim 'sub' names no one"),
        ({"sub": True}, "its claim 'sub' names no one"),
        ({"sub": {"a": 1}}, "its claim 'sub' names no one"),
        ({"sub": ""}, "its claim 'sub' names no one"),
    ],
)
async def test_claims_that_do_not_let_in(settings: Any, claims: Any, cause: str) -> None:
    settings.WSGATEWAY_JWT_AUDIENCE = ["gateway", "api"]
    settings.WSGATEWAY_JWT_ISSUER = "me"
    good = {"aud": "api", "iss": "me"}
    assert await JwtIdentity().resolve(handshake(token(**good)))
    told = await refused(token(**{**good, **claims}))
    assert cause in told.explanation
    assert told.code in (CloseCode.NOT_AUTHENTICATED, CloseCode.BAD_REQUEST)


async def test_token_for_an_audience_is_refused_if_none_is_set() -> None:
    assert "another audience" in (await refused(token(aud="api"))).explanation


async def test_clocks_may_differ_by_the_leeway() -> None:
    now = time.time()
    found = await JwtIdentity().resolve(handshake(token(exp=now - 2, nbf=now + 2)))
    assert found is not None
    assert found.expires_in == pytest.approx(3, abs=1.5)  # let in, so not closed at once


@pytest.mark.parametrize("user", [7, "7"])
async def test_claims_name_service_user_and_device(settings: Any, user: Any) -> None:
    settings.WSGATEWAY_JWT_USER_CLAIM = "user_id"
    settings.WSGATEWAY_JWT_SERVICE_CLAIM = "https://example.com/service"
    settings.WSGATEWAY_JWT_DEVICE_CLAIM = "device"
    names = {"user_id": user, "https://example.com/service": "chat", "device": "tv"}
    text = token(**names)
    assert await JwtIdentity().resolve(handshake(text, service="chat")) == Identity(
        "chat", "7", "tv"
    )
    for options in ({"service": "orders"}, {"service": "chat", "query": "device=phone"}):
        assert (await refused(text, **options)).code is CloseCode.FORBIDDEN
    free = handshake(token(**{**names, "device": None}), service="chat", query="device=phone")
    assert await JwtIdentity().resolve(free) == Identity("chat", "7", "phone")


@pytest.mark.parametrize("claim", ["service", "device"])
async def test_claim_that_is_empty_names_nothing(settings: Any, claim: str) -> None:
    """A token with an empty service was good for every service: the path chose it."""
    setattr(settings, f"WSGATEWAY_JWT_{claim.upper()}_CLAIM", claim)
    told = await refused(token(**{"service": "orders", claim: ""}))
    assert f"its claim '{claim}' names no one" in told.explanation


@pytest.mark.django_db(transaction=True)
async def test_empty_claim_is_not_a_user_without_a_value(settings: Any) -> None:
    """It was: a claim with an empty email let in as the user who has none."""
    settings.WSGATEWAY_JWT_USER_FIELD = "email"
    await get_user_model().objects.acreate(username="ann", email="")
    told = await refused(token(sub=""), JwtUserIdentity())
    assert "its claim 'sub' names no one" in told.explanation


async def test_service_comes_from_the_path_unless_a_claim_names_it() -> None:
    assert (await refused(token(), service="")).code is CloseCode.BAD_REQUEST
    assert (await refused(token(), user="bob")).code is CloseCode.FORBIDDEN


async def test_token_may_come_in_the_query_or_the_list_of_subprotocols() -> None:
    offers = {**scope(service="orders"), "subprotocols": [encode_token_protocol(token())]}
    assert await JwtIdentity().resolve(offers) == Identity("orders", "ann")
    query = scope(service="orders", query=f"token={token()}")
    assert await JwtIdentity().resolve(query) == Identity("orders", "ann")


async def test_tokens_of_both_kinds_are_told_apart(settings: Any) -> None:
    names = ("TokenIdentity", "JwtIdentity")
    settings.WSGATEWAY_IDENTITY = [f"wsgateway.identity.{name}" for name in names]
    for text in (token(), make_token("orders", "ann")):
        assert await resolve_identity(handshake(text)) == Identity("orders", "ann")
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.TokenIdentity"]
    assert await TokenIdentity().resolve(handshake(token())) is None
    with pytest.raises(IdentityRefused, match="reads this kind of token"):
        await resolve_identity(handshake(token()))


@given(st.text(st.characters(max_codepoint=255)))
def test_any_text_is_refused_or_ignored(text: str) -> None:
    request = scope(headers=[(b"authorization", b"Bearer " + text.encode("latin-1"))], service="s")
    for junk in (request, handshake(f"{part({'alg': 'HS256'})}.{part(CLAIMS)}.{text.strip()}x")):
        try:
            assert asyncio.run(JwtIdentity().resolve(junk)) is None
        except IdentityRefused:
            continue


# -- Django users ----------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
async def test_claim_names_a_django_user(settings: Any) -> None:
    users = get_user_model().objects
    ann = await users.acreate(username="ann", email="a@example.com")
    gone = await users.acreate(username="gone", email="g@example.com", is_active=False)
    found = await JwtUserIdentity().resolve(handshake(token(sub=ann.pk)))
    assert found == Identity("orders", "ann")  # as with a session
    assert found is not None
    assert (found.user_id, found.auth_hash) == (str(ann.pk), ann.get_session_auth_hash())
    for unknown in (gone.pk, 2**70, "junk", "ann"):
        told = await refused(token(sub=unknown), JwtUserIdentity())
        assert told.reason == "the token is not valid"
    settings.WSGATEWAY_JWT_USER_FIELD = "email"
    found = await JwtUserIdentity().resolve(handshake(token(sub="a@example.com")))
    assert found == Identity("orders", "ann")


# -- published keys --------------------------------------------------------------------------


def jwk(private: Any, kid: str | None = None, **fields: Any) -> dict[str, Any]:
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm: Any = next((a for k, a in kinds.items() if isinstance(private, k)), OKPAlgorithm)
    found = algorithm.to_jwk(private.public_key(), as_dict=True)
    return {**found, **({} if kid is None else {"kid": kid}), **fields}


class Provider:
    """An identity provider's web server."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.body: bytes | None = None
        self.status = 200
        self.requests = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests += 1
                default = json.dumps({"keys": provider.keys}).encode()
                self.send_response(provider.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(default if provider.body is None else provider.body)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def provider(settings: Any) -> Iterator[Provider]:
    provider = Provider()
    settings.WSGATEWAY_JWT_KEYS = []
    settings.WSGATEWAY_JWT_ALGORITHMS = ["RS256", "ES256"]
    settings.WSGATEWAY_JWT_JWKS_URL = provider.url
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


async def test_keys_are_fetched_once_and_rotated(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = private_key("ES256"), private_key("ES256")
    provider.keys = [jwk(old, "old")]
    resolver = JwtIdentity()
    first = token(old, "ES256", kid="old")
    found = await asyncio.gather(*(resolver.resolve(handshake(first)) for _ in range(50)))
    assert found == [Identity("orders", "ann")] * 50
    assert provider.requests == 1

    provider.keys = [jwk(new, "new"), jwk(old, "old")]
    second = token(new, "ES256", kid="new")
    told = await refused(second)
    # Nobody knows yet, for a request was made a moment ago. It was an internal error: with tokens
    # of made-up keys, a client filled the log with errors and tracebacks, by its refreshes.
    assert (told.code, told.reason) == (
        CloseCode.RATE_LIMIT,
        "the token's key is not known yet; try again in a moment",
    )
    assert provider.requests == 1
    monkeypatch.setattr(jwks, "PAUSE", 0.0)
    assert await resolver.resolve(handshake(second)) == Identity("orders", "ann")
    assert await resolver.resolve(handshake(first)) == Identity("orders", "ann")
    assert provider.requests == 2
    told = await refused(token(new, "ES256", kid="made up"))
    assert told.code is CloseCode.NOT_AUTHENTICATED
    assert provider.requests == 3


async def test_key_that_is_withdrawn_is_not_accepted_for_longer_than_keys_are_kept(
    provider: Provider, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = private_key("ES256")
    provider.keys = [jwk(old, "old")]
    assert await JwtIdentity().resolve(handshake(token(old, "ES256", kid="old")))
    monkeypatch.setattr(jwks, "PAUSE", 0.0)
    settings.WSGATEWAY_JWT_JWKS_MAX_AGE = 0.001
    provider.keys = [jwk(RSA_KEY, "new")]
    await asyncio.sleep(0.01)
    told = await refused(token(old, "ES256", kid="old"))
    assert told.code is CloseCode.NOT_AUTHENTICATED


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (500, None, "HTTP Error 500"),
        (302, None, "HTTP Error 302"),
        (200, b"<html>", "it is not a JSON object"),
        (200, b'{"keys": []}', "it holds no keys for signatures"),
        (200, b"x" * (jwks.MAX_SIZE + 1), "the answer has more than 524288 bytes"),
    ],
    ids=range(5),
)
async def test_keys_that_cannot_be_fetched_are_a_failure_that_passes(
    provider: Provider, status: int, body: bytes | None, cause: str
) -> None:
    provider.keys = [jwk(RSA_KEY)]
    provider.status, provider.body = status, body
    told = await refused(token(RSA_KEY, "RS256"))
    assert (told.code, told.reason) == (CloseCode.INTERNAL_ERROR, "internal error")
    assert cause in told.explanation
    assert provider.url in told.explanation


async def test_server_that_drips_does_not_hold_up_the_loop(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", 0.2)
    stop = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.05):
            handler.wfile.write(b" ")

    provider.server.RequestHandlerClass.do_GET = drip  # type: ignore[attr-defined]
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    task = asyncio.create_task(tick())
    told = await refused(token(RSA_KEY, "RS256"))
    task.cancel()
    stop.set()
    assert told.code is CloseCode.INTERNAL_ERROR
    assert ticks > 5


async def test_keys_stay_in_use_while_the_provider_is_away(settings: Any) -> None:
    now, answers = 0.0, [json.dumps({"keys": [jwk(RSA_KEY, "a")]}).encode()]

    def get(url: str) -> bytes:
        if answers:
            return answers.pop()
        raise OSError("no route to host")

    keys = KeySet("http://idp", get, lambda: now)
    assert len(await keys.find("a")) == 1
    now = 7200.0
    assert len(await keys.find("a")) == 1
    with pytest.raises(KeyUnknown, match="no route to host"):
        await keys.find("b")
    now = jwks.MAX_STALE + 1
    with pytest.raises(KeysUnavailable, match="cannot fetch http://idp: no route to host"):
        await keys.find("a")


def test_only_public_keys_for_signatures_are_taken_from_a_set() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "kid": "s"}
    private = json.loads(RSAAlgorithm.to_jwk(RSA_KEY))
    keys = [
        jwk(RSA_KEY, "good", use="sig", alg="RS256"),
        jwk(RSA_KEY, "for encryption", use="enc"),
        jwk(weak, "weak"),
        {**private, "kid": "private"},
        secret,
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "of tomorrow"},
        {"kty": "RSA", "kid": 7},
        7,
    ]
    found = keys_of_jwks(json.dumps({"keys": keys}).encode())
    assert [key.id for key in found] == ["good"]
    assert found[0].fits("RS256")
    assert not found[0].fits("PS256")
    assert not found[0].fits("HS256")


KEY_SETS = st.recursive(
    st.none() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["keys", "kty", "n"]), inner),
    max_leaves=6,
)


@given(st.binary() | KEY_SETS.map(lambda value: json.dumps(value).encode()))
def test_any_key_set_is_read_or_refused(payload: bytes) -> None:
    try:
        keys_of_jwks(payload)
    except ValueError:
        return


# -- checks ----------------------------------------------------------------------------------

PRIVATE = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"ALGORITHMS": []}, "set WSGATEWAY_JWT_ALGORITHMS, for example to ['RS256']"),
        ({"ALGORITHMS": ["none"]}, "WSGATEWAY_JWT_ALGORITHMS holds 'none'; use some of HS256"),
        ({"KEYS": []}, "set WSGATEWAY_JWT_KEYS or WSGATEWAY_JWT_JWKS_URL"),
        ({"KEYS": ["short"]}, "WSGATEWAY_JWT_KEYS[0]: the secret has 5 bytes; use 32 or more"),
        ({"KEYS": [pem(RSA_KEY)]}, "WSGATEWAY_JWT_KEYS[0] is an RSA key, which none of"),
        ({"KEYS": [PRIVATE]}, "it is a private key; give the public key"),
        ({"KEYS": ["-----BEGIN PUBLIC KEY-----\nx"]}, "it begins like PEM, but is not"),
        ({"KEYS": [pem(rsa.generate_private_key(65537, 1024))]}, "has 1024 bits; use 2048"),
        ({"JWKS_URL": "idp.example.com"}, "is 'idp.example.com'; write a URL of http or https"),
        ({"KEYS": [], "JWKS_URL": "https://idp"}, "'HS256' in WSGATEWAY_JWT_ALGORITHMS takes a"),
        ({"USER_CLAIM": ""}, "WSGATEWAY_JWT_USER_CLAIM is empty"),
    ],
)
async def test_E011_configuration_that_accepts_no_token(
    settings: Any, names: dict[str, Any], text: str
) -> None:
    for name, value in names.items():
        setattr(settings, f"WSGATEWAY_JWT_{name}", value)
    told = messages()["E011"]
    assert text in told
    with pytest.raises(ImproperlyConfigured) as caught:
        await JwtIdentity().resolve(handshake(token()))
    assert text in str(caught.value)
    assert SECRET not in told
    assert "-----" not in told


def test_W122_published_keys_without_tls(settings: Any) -> None:
    settings.WSGATEWAY_JWT_JWKS_URL = "http://idp.example.com/keys"
    assert "without TLS" in messages(deploy=True)["W122"]
    settings.WSGATEWAY_JWT_JWKS_URL = "https://idp.example.com/keys"
    assert "W122" not in messages(deploy=True)


@pytest.mark.parametrize(("name", "value"), [("ISSUER", "me"), ("AUDIENCE", ["api"])])
def test_W123_tokens_for_anything(settings: Any, name: str, value: Any) -> None:
    assert "every token that was signed" in messages(deploy=True)["W123"]
    setattr(settings, f"WSGATEWAY_JWT_{name}", value)
    assert "W123" not in messages(deploy=True)


def test_keys_are_in_no_text_about_a_wrong_value(settings: Any) -> None:
    for value in (SECRET, [SECRET, ""]):
        settings.WSGATEWAY_JWT_KEYS = value
        assert SECRET not in messages()["E002"]
