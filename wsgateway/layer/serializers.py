"""Message serializers, with the interface of ``channels_redis.serializers``."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import msgpack

if TYPE_CHECKING:
    from cryptography.fernet import Fernet, MultiFernet

__all__ = [
    "BaseMessageSerializer",
    "JSONSerializer",
    "MsgPackSerializer",
    "Serializer",
    "SerializerDoesNotExist",
    "SerializersRegistry",
    "registry",
]


MAX_DEPTH = 256
"""Containers within each other that a JSON message may have: what its decoder takes depends on
how deep the receiver's stack is."""
_KEY = "a dict in the message has a key of type {}; no receiver could read it: keys must be str"
_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})
_LARGE = 1024 * 1024
"""Bytes of a message after which msgpack's buffer is given back."""


class Serializer(Protocol):
    """What the layer needs of a serializer."""

    def serialize(self, message: Any) -> bytes: ...
    def deserialize(self, message: bytes) -> Any: ...


class SerializerDoesNotExist(KeyError):
    """No serializer is registered under this name."""


class BaseMessageSerializer(ABC):
    """Message to bytes, encrypted if keys are given.

    Args:
        symmetric_encryption_keys: The first one encrypts, each of them decrypts.
        random_prefix_length: Random bytes put in front; only Redis' sorted sets need them.
        expiry: Not used. A limit on the age of ciphertext would make stored messages
            unreadable; the layer enforces expiry itself.
    """

    def __init__(
        self,
        symmetric_encryption_keys: Iterable[str | bytes] | None = None,
        random_prefix_length: int = 0,
        expiry: float | None = None,
    ) -> None:
        self.random_prefix_length = max(0, random_prefix_length)
        self.expiry = expiry
        self.crypter = self._crypter(symmetric_encryption_keys)

    def _crypter(self, keys: Iterable[str | bytes] | None) -> MultiFernet | None:
        if not keys:
            return None
        if isinstance(keys, (str, bytes)):
            raise ValueError("symmetric_encryption_keys must be a list of possible keys")
        try:
            from cryptography.fernet import MultiFernet
        except ImportError as exc:
            raise ValueError(
                "symmetric_encryption_keys need the package cryptography; "
                'run "pip install cryptography"'
            ) from exc
        return MultiFernet([self.make_fernet(key) for key in keys])

    def make_fernet(self, key: str | bytes) -> Fernet:
        """Return the cipher that *key* stands for; the same as in channels_redis."""
        from cryptography.fernet import Fernet

        raw = key.encode() if isinstance(key, str) else key
        return Fernet(base64.urlsafe_b64encode(hashlib.sha256(raw).digest()))

    @property
    def is_strict(self) -> bool:
        """Whether `serialize` is known to refuse whatever `deserialize` could not read."""
        return type(self) in (JSONSerializer, MsgPackSerializer)

    @property
    def is_plain(self) -> bool:
        """Whether `serialize` and `deserialize` do nothing but `as_bytes` and `from_bytes`."""
        ours, base = type(self), BaseMessageSerializer
        changed = ours.serialize is not base.serialize or ours.deserialize is not base.deserialize
        return not (changed or self.crypter or self.random_prefix_length)

    @abstractmethod
    def as_bytes(self, message: Any) -> bytes:
        """Return *message* as bytes, not encrypted."""

    @abstractmethod
    def from_bytes(self, message: bytes) -> Any:
        """Return what `as_bytes` was given."""

    def serialize(self, message: Any) -> bytes:
        """Return *message* as bytes."""
        data = self.as_bytes(message)
        if self.crypter is not None:
            data = self.crypter.encrypt(data)
        if self.random_prefix_length:
            data = secrets.token_bytes(self.random_prefix_length) + data
        return data

    def deserialize(self, message: bytes) -> Any:
        """Return what `serialize` was given.

        Raises:
            Exception: Whatever the format raises for bytes that it did not make.
        """
        data = message[self.random_prefix_length :]
        if self.crypter is not None:
            data = self.crypter.decrypt(data)
        return self.from_bytes(data)


class JSONSerializer(BaseMessageSerializer):
    """JSON; cannot carry bytes, nor NaN and infinities."""

    def as_bytes(self, message: Any) -> bytes:
        """See the base class."""
        _require_str_keys(message, MAX_DEPTH)
        return json.dumps(message, ensure_ascii=False, allow_nan=False).encode()

    def from_bytes(self, message: bytes) -> Any:
        """See the base class."""
        return json.loads(message)


def _require_str_keys(value: Any, depth: int) -> None:
    """Refuse a dict with other keys, which JSON would turn into strings.

    Raises:
        TypeError: There is one.
        ValueError: Containers are nested more than *depth* levels deep.
    """
    values = value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(_KEY.format(type(key).__name__))
        values = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    if not depth:
        raise ValueError(
            f"the message nests containers more than {MAX_DEPTH} levels deep; send a flatter one"
        )
    for inner in values:
        _require_str_keys(inner, depth - 1)


class MsgPackSerializer(BaseMessageSerializer):
    """msgpack; the default."""

    from_bytes = staticmethod(msgpack.unpackb)

    def as_bytes(self, message: Any) -> bytes:
        """See the base class."""
        try:
            if _is_flat(message):
                return _pack_flat(message)
            data: bytes = msgpack.packb(message)
        except OverflowError as exc:
            raise OverflowError("an int in the message exceeds 64 bits; send it as a str") from exc
        try:
            msgpack.unpackb(data)  # it writes keys that it does not read
        except ValueError as exc:
            raise TypeError(_KEY.format(str(exc).partition(" is not allowed")[0])) from exc
        return data


_packer = msgpack.Packer()


def _pack_flat(message: Any) -> bytes:
    """Return the bytes of what is flat.

    ``packb`` makes a packer each time, which costs more than the packing. All threads share this
    one: for these types it runs no Python code, so it keeps the interpreter's lock.
    """
    global _packer
    data: bytes = _packer.pack(message)
    if len(data) > _LARGE:
        _packer = msgpack.Packer()  # it never shrinks
    return data


def _is_flat(message: Any) -> bool:
    """Say whether *message* is a dict of strings to scalars, as most are; no subclasses."""
    if type(message) is not dict:
        return False
    for key, value in message.items():
        if type(key) is not str or type(value) not in _SCALARS:
            return False
    return True


class SerializersRegistry:
    """Serializer classes by name."""

    def __init__(self) -> None:
        self.classes: dict[str, type[Any]] = {}
        """By what ``serializer_format`` names them."""

    @property
    def formats(self) -> list[str]:
        """What ``serializer_format`` may be."""
        return sorted(self.classes)

    def register_serializer(self, format: str, serializer_class: type[Any]) -> None:
        """Make *serializer_class* available as ``serializer_format``.

        Raises:
            AssertionError: It is not a class with ``serialize`` and ``deserialize``.
        """
        wanted = ("serialize", "deserialize")
        if not isinstance(serializer_class, type) or not all(
            hasattr(serializer_class, name) for name in wanted
        ):
            raise AssertionError(
                f"{serializer_class!r} is not a class with the methods serialize and deserialize"
            )
        self.classes[format] = serializer_class

    def get_serializer(self, format: str, *args: Any, **kwargs: Any) -> Serializer:
        """Return a serializer made with the given arguments.

        Raises:
            SerializerDoesNotExist: Nothing is registered as *format*.
        """
        try:
            serializer_class = self.classes[format]
        except KeyError:
            raise SerializerDoesNotExist(format) from None
        serializer: Serializer = serializer_class(*args, **kwargs)
        return serializer


registry = SerializersRegistry()
"""What ``serializer_format`` chooses from."""
registry.register_serializer("json", JSONSerializer)
registry.register_serializer("msgpack", MsgPackSerializer)
