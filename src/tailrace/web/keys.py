"""The keys that tokens are checked with: one secret, one public key, or a key set.

Rules of this file
1. The key decides which algorithms are possible, never the token: HMAC only with the secret, public-key algorithms
   only with a public key of their type, `none` with nothing.
2. Nothing a token says is fetched or opened: `jku`, `x5u`, `x5c` and `jwk` are never looked at.
3. A key set is bounded in size and keys; an unknown `kid` causes at most one fetch in `REFETCH_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tailrace.codes import CloseCode
from tailrace.config import Settings
from tailrace.errors import ConfigError, TailraceError, Unauthorized

__all__ = ["Key", "KeySetUrl", "KeySource", "KeysUnavailable", "create_key_source"]

log = logging.getLogger("tailrace.auth")

MAX_KEY_SET_BYTES = 262_144
MAX_KEYS = 64
REFETCH_SECONDS = 30.0
FETCH_SECONDS = 5.0
MAX_STALE_SECONDS = 86_400.0
"""A key set that cannot be fetched again is used no longer than this."""

_HMAC = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class KeysUnavailable(TailraceError):
    """The keys of tokens cannot be had now, so nobody's token can be checked."""

    code = "KEYS_UNAVAILABLE"
    status = 503
    close_code = CloseCode.LOG_UNAVAILABLE
    retryable = True
    retry_after = 2.0


class Key(msgspec.Struct, frozen=True):
    """A key and what it may be used for."""

    material: Any
    algorithms: tuple[str, ...]
    kid: str | None = None


class KeySource(Protocol):
    """Where keys come from."""

    async def find(self, algorithm: str, kid: str | None) -> Key:
        """The key that a token with this header must be signed with.

        Raises:
            Unauthorized: there is none for this algorithm and key id.
            KeysUnavailable: the keys cannot be had now.
        """


def create_key_source(settings: Settings) -> KeySource:
    """Make the key source that the settings name.

    Raises:
        ConfigError: there is no key, or it cannot be used.
    """
    wanted = settings.jwt_algorithms
    if settings.jwt_secret is not None:
        secret = settings.jwt_secret.get_secret_value().encode()
        if _is_public(secret):
            raise ConfigError("jwt_secret holds a key that others know; name its file in jwt_key_file or jwt_jwks_file")
        return _FixedKeys([Key(secret, wanted or ("HS256",))])
    if settings.jwt_key_file is not None:
        return _FixedKeys([_public_key(_read(settings.jwt_key_file), wanted, str(settings.jwt_key_file))])
    if settings.jwt_jwks_file is not None:
        source = _KeySetFile(settings.jwt_jwks_file, wanted)
        source.load()
        return source
    if settings.jwt_jwks_url is not None:
        return KeySetUrl(settings.jwt_jwks_url, wanted, settings.jwks_cache_seconds)
    raise ConfigError("no key for tokens: set jwt_secret, jwt_key_file, jwt_jwks_file or jwt_jwks_url")


def _is_public(secret: bytes) -> bool:
    """Whether this is a key of another sort, PEM, ssh or JWK: whoever has the public half could sign with it."""
    text = secret.strip()
    if b"-----BEGIN" in text or text.startswith((b"ssh-", b"ecdsa-sha2-", b"sk-ssh-", b"sk-ecdsa-")):
        return True
    try:
        made = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(made, dict) and bool({"kty", "keys"} & set(made))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_SET_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_KEY_SET_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_KEY_SET_BYTES} bytes")
    return data


def _public_key(pem: bytes, wanted: tuple[str, ...], name: str) -> Key:
    if b"PRIVATE KEY" in pem:
        raise ConfigError(f"{name} holds a private key; a gateway needs only the public one")
    try:
        material = load_pem_public_key(pem)
    except ValueError as exc:
        raise ConfigError(f"{name} is not a public key in PEM form") from exc
    algorithms = _possible(material)
    if not algorithms:
        raise ConfigError(f"{name} is not an RSA (2048 bits or more), EC or Ed25519 key")
    usable = tuple(each for each in algorithms if not wanted or each in wanted)
    if not usable or (wanted and set(wanted) - set(algorithms)):
        raise ConfigError(f"jwt_algorithms does not fit the key in {name}: it can do {', '.join(algorithms)}")
    return Key(material, usable)


def _possible(material: object) -> tuple[str, ...]:
    if isinstance(material, rsa.RSAPublicKey):
        return _RSA if material.key_size >= 2048 else ()
    if isinstance(material, ec.EllipticCurvePublicKey):
        algorithm = _CURVES.get(material.curve.name)
        return (algorithm,) if algorithm else ()
    return ("EdDSA",) if isinstance(material, ed25519.Ed25519PublicKey) else ()


class _FixedKeys:
    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    async def find(self, algorithm: str, kid: str | None) -> Key:
        return _choose(self._keys, algorithm, None)


def _choose(keys: Iterable[Key], algorithm: str, kid: str | None) -> Key:
    fitting = [key for key in keys if algorithm in key.algorithms and (kid is None or key.kid == kid)]
    if len(fitting) != 1:
        raise Unauthorized("the token's algorithm or key is not accepted here", reason="key")
    return fitting[0]


def _parse_key_set(data: bytes, wanted: tuple[str, ...]) -> tuple[Key, ...]:
    """Read a key set; secrets and unknown kinds of keys in it are passed over.

    Raises:
        ValueError: not a key set.
    """
    if len(data) > MAX_KEY_SET_BYTES:
        raise ValueError(f"larger than {MAX_KEY_SET_BYTES} bytes")
    entries = msgspec.json.decode(data, type=dict[str, Any]).get("keys")
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ValueError(f"`keys` is a list of at most {MAX_KEYS}")
    return tuple(key for entry in entries if (key := _from_jwk(entry, wanted)) is not None)


def _from_jwk(entry: object, wanted: tuple[str, ...]) -> Key | None:
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return None
    try:
        material = jwt.PyJWK({name: value for name, value in entry.items() if name != "alg"}).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if hasattr(material, "public_key"):
        return None  # a private key has no business in a published set
    only, kid = entry.get("alg"), entry.get("kid")
    algorithms = tuple(
        each for each in _possible(material) if (not wanted or each in wanted) and (only is None or each == only)
    )
    return Key(material, algorithms, kid if isinstance(kid, str) else None)


class _KeySetFile:
    """A key set on disk, read again when the file changed."""

    def __init__(self, path: Path, wanted: tuple[str, ...]) -> None:
        self._path = path
        self._wanted = wanted
        self._stamp: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def load(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp != self._stamp:
                self._keys, self._stamp = _parse_key_set(_read(self._path), self._wanted), stamp
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{self._path} is not a key set: {exc}") from exc

    async def find(self, algorithm: str, kid: str | None) -> Key:
        try:
            await asyncio.to_thread(self.load)
        except ConfigError as exc:
            log.warning("key set cannot be read again", extra={"error": str(exc)})
        return _choose(self._keys, algorithm, kid)


class KeySetUrl:
    """A key set by HTTP(S): cached, refetched in one flight, and used while its server is away."""

    def __init__(
        self, url: str, wanted: tuple[str, ...], cache_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url
        self._wanted = wanted
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._keys: tuple[Key, ...] = ()
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def find(self, algorithm: str, kid: str | None) -> Key:
        """See `KeySource`."""
        if self._clock() - self._fetched_at > self._cache_seconds:
            await self._refresh()
        try:
            return _choose(self._keys, algorithm, kid)
        except Unauthorized:
            if kid is None or any(key.kid == kid for key in self._keys):
                raise
        await self._refresh()
        return _choose(self._keys, algorithm, kid)

    async def _refresh(self) -> None:
        before = self._tried_at
        async with self._lock:
            pause = REFETCH_SECONDS if self._keys else 1.0
            if self._tried_at == before and self._clock() - self._tried_at >= pause:
                try:
                    self._keys = _parse_key_set(await self._fetch(), self._wanted)
                    self._fetched_at = self._clock()
                except (OSError, ValueError, TimeoutError) as exc:
                    log.warning("key set cannot be fetched", extra={"error": type(exc).__name__})
                finally:
                    self._tried_at = self._clock()
        if self._clock() - self._fetched_at > MAX_STALE_SECONDS:
            raise KeysUnavailable("the keys of tokens cannot be fetched now")

    async def _fetch(self) -> bytes:
        import httpx

        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=FETCH_SECONDS) as client,
                client.stream("GET", self._url, headers={"Accept": "application/json"}) as answer,
            ):
                if answer.status_code != 200:
                    raise ValueError(f"status {answer.status_code}")
                data = bytearray()
                async for part in answer.aiter_bytes():
                    data += part
                    if len(data) > MAX_KEY_SET_BYTES:
                        raise ValueError("too large")
                return bytes(data)
        except httpx.HTTPError as exc:
            raise OSError(type(exc).__name__) from exc
