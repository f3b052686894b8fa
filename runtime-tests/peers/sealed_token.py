"""A second reader of sealed tokens, written from RECORD-FORMAT.md alone.

    sealed_token.py vectors FOLDER     reads every vector of FOLDER and compares the outcome with its `expect`
    sealed_token.py open               reads {"sealed","key","client","tenant","user","nonce"} from standard input and
                                       writes the plaintext as JSON; the key is base64, as in Key Vault

It shares no code with behalf, and nothing but the page.
"""

import base64
import hashlib
import hmac
import json
import re
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LONGEST = 131_072
HEADERS = {
    "expect", "comment", "client", "tenant", "user", "nonce", "key",
    "binding-input", "binding", "header", "iv", "plaintext",
}


class Damaged(Exception):
    """The token is not what a writer wrote."""


class NotBound(Exception):
    """The token is for another client, tenant, user or enrolment."""


def binding(client: str, tenant: str, user: str, nonce: str) -> bytes:
    return hashlib.sha256(binding_input(client, tenant, user, nonce)).digest()


def binding_input(*parts: str) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def decode(text: str) -> bytes:
    """base64url without padding, in its one canonical form."""
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text) or len(text) % 4 == 1:
        raise Damaged("base64url")
    decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != text:
        raise Damaged("stray bits")
    return decoded


def json_object(text: bytes, members: set[str]) -> dict[str, str]:
    """A JSON object of exactly these members, each once and each a string."""

    def once(pairs):
        if len(pairs) != len({name for name, _ in pairs}):
            raise Damaged("a member twice")
        return dict(pairs)

    try:
        value = json.loads(text.decode("utf-8", "strict"), object_pairs_hook=once)
    except ValueError as error:
        raise Damaged("JSON") from error
    if not isinstance(value, dict) or set(value) != members:
        raise Damaged("members")
    if not all(isinstance(member, str) for member in value.values()):
        raise Damaged("no string")
    return value


def open_token(token: str, keys, secret: str, client: str, tenant: str, user: str, nonce: str):
    """`keys(version)` fetches a version of the tenant's key. Returns the plaintext's members."""
    if len(token.encode()) > LONGEST:
        raise Damaged("too long")
    parts = token.split(".")
    if len(parts) != 5 or parts[1] != "":
        raise Damaged("parts")
    header = json_object(decode(parts[0]), {"alg", "enc", "kid", "typ", "bnd"})
    if (header["alg"], header["enc"], header["typ"]) != ("dir", "A256GCM", "behalf+jwe"):
        raise Damaged("alg, enc or typ")
    name, _, version = header["kid"].partition("/")
    if not re.fullmatch(r"[0-9A-Za-z-]{1,127}", name) or not re.fullmatch(r"[0-9a-f]{32}", version):
        raise Damaged("kid")
    bound = decode(header["bnd"])
    iv, text, tag = decode(parts[2]), decode(parts[3]), decode(parts[4])
    if (len(bound), len(iv), len(tag)) != (32, 12, 16):
        raise Damaged("length")
    # Before a key is fetched.
    if name != secret or not hmac.compare_digest(bound, binding(client, tenant, user, nonce)):
        raise NotBound
    try:
        plaintext = AESGCM(keys(version)).decrypt(iv, text + tag, parts[0].encode())
    except InvalidTag as error:
        raise Damaged("tag") from error
    payload = json_object(plaintext, {"refresh_token", "user_id", "scope"})
    if payload["user_id"] != user:
        raise NotBound
    return payload


def outcome(vector: dict[str, str]) -> str:
    """What a vector's token comes to, in the words of its header `expect`."""
    try:
        payload = open_token(
            vector["token"], lambda _: bytes.fromhex(vector["key"]), f"obo-{vector['tenant']}",
            vector["client"], vector["tenant"], vector["user"], vector["nonce"],
        )
    except Damaged:
        return "damaged"
    except NotBound:
        return "not-bound"
    if vector["expect"] == "opens":
        assert payload == json.loads(vector["plaintext"])
        parts = vector["token"].split(".")
        assert decode(parts[0]).decode() == vector["header"]
        assert decode(parts[2]).hex() == vector["iv"]
        parameters = vector["client"], vector["tenant"], vector["user"], vector["nonce"]
        assert binding_input(*parameters).hex() == vector["binding-input"]
        assert binding(*parameters).hex() == vector["binding"]
    return "opens"


def read_vector(path: Path) -> dict[str, str]:
    head, _, token = path.read_text().partition("\n\n")
    vector = {"token": token.removesuffix("\n")}
    for line in head.splitlines():
        name, separator, value = line.partition(": ")
        if not separator or name not in HEADERS or name in vector:
            sys.exit(f"{path}: unknown or repeated header: {line}")
        vector[name] = value
    return vector


def main() -> None:
    match sys.argv[1:]:
        case ["vectors", folder]:
            paths = sorted(Path(folder).iterdir())
            vectors = [(path.name, read_vector(path)) for path in paths]
            wrong = [f"{name}: {outcome(it)}, not {it['expect']}" for name, it in vectors if outcome(it) != it["expect"]]
            if wrong or len(vectors) < 20:
                sys.exit("\n".join(wrong) or "there are no vectors")
            print(f"{len(vectors)} vectors")
        case ["open"]:
            given = json.load(sys.stdin)
            key = base64.b64decode(given["key"], validate=True)
            payload = open_token(
                given["sealed"], lambda _: key, f"obo-{given['tenant']}",
                given["client"], given["tenant"], given["user"], given["nonce"],
            )
            json.dump(payload, sys.stdout)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
