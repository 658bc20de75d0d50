"""JSON web tokens that somebody else issues: an identity provider, or the site's own API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist, ValidationError

from wsgateway.conf import settings
from wsgateway.exceptions import IdentityRefused
from wsgateway.handshake import parameter
from wsgateway.hooks import call_hook
from wsgateway.identity.base import DEFAULT_DEVICE, Identity, Scope
from wsgateway.identity.jwks import KeysUnavailable, KeyUnknown, key_set
from wsgateway.identity.jwt_config import JwtConfig
from wsgateway.identity.jwt_keys import Key
from wsgateway.identity.paths import require_path, service_in
from wsgateway.identity.tokens import is_jwt, token_in
from wsgateway.identity.users import NamesUsers
from wsgateway.logins import token_account
from wsgateway.protocol.codes import CloseCode

__all__ = ["JwtIdentity", "JwtUserIdentity"]

Claims = Mapping[str, Any]


class JwtIdentity:
    """A JSON web token; `wsgateway.identity.token_in` says where clients put it.

    Its claims name the user, and perhaps service and device. There is no Django user behind it:
    the socket ends with the token. `JwtUserIdentity` finds the user.
    """

    reads_tokens = True

    def config(self) -> JwtConfig:
        """Return whose tokens are accepted; override it to accept those of another issuer, too."""
        return JwtConfig.from_settings()

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`; an invalid or expired token is refused, and one of another kind ignored.

        Raises:
            ImproperlyConfigured: No token can be accepted.
        """
        token = token_in(scope)
        if not token or not is_jwt(token):
            return None
        config = self.config()
        if flaws := config.flaws():
            raise ImproperlyConfigured("; ".join(flaws))
        claims = await _verify(token, config)
        account = await self.account_of(_name(claims, config.user_claim))
        service = config.service_claim and _name(claims, config.service_claim)
        identity = Identity(
            service=service or service_in(scope),
            device=_device(claims, config, scope),
            issued_at=float(claims.get("iat", 0)),
            expires_at=float(claims["exp"]) + config.leeway,
            **account,
        )
        return require_path(scope, identity)

    async def account_of(self, name: str) -> dict[str, Any]:
        """Return what an `Identity` holds of the user, at least ``user``.

        Args:
            name: What the token's claim says.

        Raises:
            IdentityRefused: There is no such user.
        """
        return {"user": name}


class JwtUserIdentity(NamesUsers, JwtIdentity):
    """A JSON web token that names a Django user, whose sockets end with the user and the password.

    WSGATEWAY_JWT_USER_FIELD is the field of the user model that the claim has. The inbox is named
    as that of a user with a session.
    """

    async def account_of(self, name: str) -> dict[str, Any]:
        """See `JwtIdentity.account_of`."""
        account: dict[str, Any] = await call_hook(self._find, name)
        return account

    def _find(self, name: str) -> dict[str, Any]:
        users = get_user_model()._default_manager
        try:
            user = users.get(**{settings.JWT_USER_FIELD: name})
        except (ObjectDoesNotExist, ValidationError, ValueError, OverflowError):
            user = None
        account = None if user is None else token_account(user)
        if account is None:
            raise _invalid(f"no active user has this {settings.JWT_USER_FIELD}")
        return {"user": self.require_name(user), **account}


async def _verify(token: str, config: JwtConfig) -> Claims:
    """Return the claims of a token that is valid now.

    Raises:
        IdentityRefused: It is not, or that cannot be found out.
    """
    import jwt

    try:
        header = jwt.get_unverified_header(token)
        algorithm, id = str(header.get("alg")), header.get("kid")
        if algorithm not in config.algorithms:  # `none` can never be one of them
            raise _invalid(f"its algorithm {algorithm[:16]!r} is not in WSGATEWAY_JWT_ALGORITHMS")
        async for key in _candidates(config, algorithm, id):
            try:
                return _decode(token, key, algorithm, config)
            except jwt.InvalidSignatureError:
                continue
    except jwt.ExpiredSignatureError as exc:
        reason = "the token has expired; get a new one"
        raise IdentityRefused(CloseCode.NOT_AUTHENTICATED, reason) from exc
    except (jwt.InvalidTokenError, jwt.InvalidKeyError) as exc:
        raise _invalid(_cause(exc)) from exc
    except KeyUnknown as exc:
        reason = "the token's key is not known yet; try again in a moment"
        raise IdentityRefused(CloseCode.RATE_LIMIT, reason, "", str(exc)) from exc
    except KeysUnavailable as exc:
        code = CloseCode.INTERNAL_ERROR
        cure = "check WSGATEWAY_JWT_JWKS_URL; the client tries again"
        raise IdentityRefused(code, code.reason, cure, str(exc)) from exc
    raise _invalid("no key that is known for its algorithm has signed it")


async def _candidates(config: JwtConfig, algorithm: str, id: Any) -> AsyncIterator[Key]:
    """Yield the keys that may have signed a token: the project's own, then those published."""
    for key in config.own_keys(algorithm):
        yield key
    if config.jwks_url and not algorithm.startswith("HS"):
        for key in await key_set(config.jwks_url).find(id):
            if key.fits(algorithm):
                yield key


def _decode(token: str, key: Key, algorithm: str, config: JwtConfig) -> Claims:
    import jwt

    return jwt.decode(
        token,
        key.value,
        algorithms=[algorithm],
        audience=list(config.audience) or None,
        issuer=config.issuer or None,
        leeway=config.leeway,
        # The claim that names the user is read below, and need not be `sub`
        options={"require": ["exp"], "verify_sub": False},
    )


def _cause(error: Exception) -> str:
    """Return why a token is invalid; PyJWT's texts hold no part of a token."""
    import jwt

    if isinstance(error, jwt.InvalidAudienceError | jwt.InvalidIssuerError):
        name = "audience" if isinstance(error, jwt.InvalidAudienceError) else "issuer"
        return f"it is for another {name} than WSGATEWAY_JWT_{name.upper()}"
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it has no claim {error.claim!r}"
    if isinstance(error, jwt.ImmatureSignatureError):
        return "it is not valid yet; do the clocks differ by more than WSGATEWAY_JWT_LEEWAY?"
    return f"PyJWT raised {type(error).__name__}"


def _invalid(cause: str) -> IdentityRefused:
    return IdentityRefused(CloseCode.NOT_AUTHENTICATED, "the token is not valid", "", cause)


def _name(claims: Claims, claim: str) -> str:
    """Return the name in a claim, which may be a number.

    Raises:
        IdentityRefused: There is none.
    """
    value = claims.get(claim)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise _invalid(f"its claim {claim!r} names no one")
    return value


def _device(claims: Claims, config: JwtConfig, scope: Scope) -> str:
    """Return the device: the token's if it names one, otherwise what the client says.

    Raises:
        IdentityRefused: The client says another one.
    """
    wanted = parameter(scope, "device")
    if not config.device_claim or config.device_claim not in claims:
        return wanted or DEFAULT_DEVICE
    bound = _name(claims, config.device_claim)
    if wanted in (None, bound):
        return bound
    cure = "connect without ?device=, or with a token for that device"
    raise IdentityRefused(CloseCode.FORBIDDEN, "the token names another device", cure)
