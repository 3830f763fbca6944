"""Keys and tokens for tests, good ones and hostile ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

__all__ = ["SECRET", "claims", "forge", "forge_raw", "jwk_of", "private_key", "public_pem", "sign", "token"]

SECRET = "a-secret-of-tests-with-more-than-32-bytes"


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of alice for an hour; None takes one away."""
    made = {"sub": "alice", "exp": int(time.time()) + 3_600, "iat": int(time.time()), **changes}
    return {name: value for name, value in made.items() if value is not None}


def token(
    sub: str = "alice",
    *,
    read: list[str] | None = None,
    write: list[str] | None = None,
    admin: bool = False,
    **changes: Any,
) -> str:
    """A good HS256 token."""
    grants = {"read": read or [], "write": write or [], "admin": admin}
    return sign(claims(sub=sub, tailrace=grants, **changes))


def sign(payload: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    """A token that is signed as a well-meaning issuer would."""
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers or None)


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(header: Any, payload: Any, key: bytes | None = None) -> str:
    """A token with any header at all, signed by HMAC with `key`, or not at all."""
    return forge_raw(json.dumps(header).encode(), json.dumps(payload).encode(), key)


def forge_raw(header: bytes, payload: bytes, key: bytes | None = None) -> str:
    """The same from any bytes."""
    body = f"{_part(header)}.{_part(payload)}"
    signature = hmac.new(key, body.encode(), hashlib.sha256).digest() if key is not None else b""
    return f"{body}.{_part(signature)}"


@cache
def private_key(kind: str) -> Any:
    """A private key: rsa, rsa1024, p256, p384, ed25519; `other` for another one of the kind, e.g. rsa-other."""
    kind = kind.removesuffix("-other")
    if kind.startswith("rsa"):
        return rsa.generate_private_key(public_exponent=65_537, key_size=1_024 if kind == "rsa1024" else 2_048)
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1() if kind == "p256" else ec.SECP384R1())


def public_pem(kind: str) -> bytes:
    """Its public half as PEM."""
    made: bytes = private_key(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made


def private_pem(kind: str) -> bytes:
    """The private key as PEM."""
    made: bytes = private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made


def jwk_of(kind: str, kid: str, **more: Any) -> dict[str, Any]:
    """Its public half as a JSON Web Key."""
    public = private_key(kind).public_key()
    algorithm: Any = {"rsa": jwt.algorithms.RSAAlgorithm, "ed2": jwt.algorithms.OKPAlgorithm}.get(
        kind[:3], jwt.algorithms.ECAlgorithm
    )
    return {**algorithm.to_jwk(public, as_dict=True), "kid": kid, **more}
