"""Makes the test vectors of sealed tokens, one file a case, named for its defect.

    vectors.py FOLDER            writes them
    vectors.py --check FOLDER    fails if a file differs from what would be written, is missing or is too many

Every token is sealed here, not by behalf, so that a vector has the one defect that it is named for: a header with `zip`
is authenticated like a good one.
"""

import base64
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealed_token import binding, binding_input

# What behalf's own tests use, so that the same files run through the whole vault there.
CLIENT = "22222222-2222-2222-2222-222222222222"
TENANT = "11111111-1111-1111-1111-111111111111"
OTHER_TENANT = "99999999-9999-9999-9999-999999999999"
OBJECT = "44444444-4444-4444-4444-444444444444"
OTHER_OBJECT = "55555555-5555-5555-5555-555555555555"
USER = f"{TENANT}.{OBJECT}"
NONCE = "bm9uY2U"
VERSION = "0" * 32
KEY = bytes(range(32))
IV = bytes(range(0xA0, 0xAC))
PLAINTEXT = {"refresh_token": "0.AX-vector", "user_id": USER, "scope": "https://graph.microsoft.com/.default"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def header(client=CLIENT, tenant=TENANT, user=USER, nonce=NONCE, **changed) -> dict:
    fields = {
        "alg": "dir", "enc": "A256GCM", "kid": f"obo-{TENANT}/{VERSION}", "typ": "behalf+jwe",
        "bnd": b64(binding(client, tenant, user, nonce)),
    }
    fields.update(changed)
    return {name: value for name, value in fields.items() if value is not None}


def sealed(head=None, plaintext=None, key=KEY, iv=IV) -> list[str]:
    head = header() if head is None else head
    first = b64((head if isinstance(head, str) else compact(head)).encode())
    text = PLAINTEXT if plaintext is None else plaintext
    text = text if isinstance(text, bytes) else compact(text).encode()
    both = AESGCM(key).encrypt(iv, text, first.encode())
    return [first, "", b64(iv), b64(both[:-16]), b64(both[-16:])]


def with_part(at: int, change) -> str:
    parts = sealed()
    parts[at] = change(parts[at])
    return ".".join(parts)


def opens(comment: str, plaintext: dict, head: str | None = None) -> tuple[str, str, str, dict]:
    head = head or compact(header())
    parts = sealed(head, plaintext)
    values = {
        "binding-input": binding_input(CLIENT, TENANT, USER, NONCE).hex(),
        "binding": binding(CLIENT, TENANT, USER, NONCE).hex(),
        "header": head,
        "iv": IV.hex(),
        "plaintext": compact(plaintext),
    }
    return "opens", comment, ".".join(parts), values


def damaged(comment: str, token) -> tuple[str, str, str, dict]:
    return "damaged", comment, token if isinstance(token, str) else ".".join(token), {}


def not_bound(comment: str, parts: list[str]) -> tuple[str, str, str, dict]:
    return "not-bound", comment, ".".join(parts), {}


def repeated(name: str) -> str:
    text = compact(header())
    return text[:-1] + f',"{name}":{json.dumps(header()[name])}}}'


def vectors() -> dict[str, tuple[str, str, str, dict]]:
    token = ".".join(sealed())
    unicode = {**PLAINTEXT, "refresh_token": 'quote " backslash \\ line \n ü 𝄞'}
    bits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return {
        "good": opens("as a writer writes it", PLAINTEXT),
        "good_unicode": opens("characters that JSON escapes, and some outside ASCII", unicode),
        "good_long": opens("a refresh token of 20,000 characters", {**PLAINTEXT, "refresh_token": "r" * 20_000}),
        "good_header_reordered": opens(
            "the members in another order and with spaces, as another JOSE library may write them", PLAINTEXT,
            json.dumps(dict(reversed(header().items())))),
        "good_header_escaped": opens(
            "the slash of kid escaped, as some JSON libraries write it", PLAINTEXT,
            compact(header()).replace("/", "\\/")),
        "alg_none": damaged("alg is none", sealed(header(alg="none"))),
        "alg_a256kw": damaged("alg is A256KW, as if the key wrapped another", sealed(header(alg="A256KW"))),
        "alg_other_case": damaged("alg is DIR", sealed(header(alg="DIR"))),
        "alg_missing": damaged("no alg", sealed(header(alg=None))),
        "enc_a128gcm": damaged("enc is A128GCM", sealed(header(enc="A128GCM"))),
        "enc_a256cbc_hs512": damaged("enc is A256CBC-HS512", sealed(header(enc="A256CBC-HS512"))),
        "typ_other": damaged("typ is JWE", sealed(header(typ="JWE"))),
        "typ_missing": damaged("no typ", sealed(header(typ=None))),
        "crit_unknown": damaged("crit names an extension", sealed(header(crit=["exp"], exp=1))),
        "crit_empty": damaged("crit is empty", sealed(header(crit=[]))),
        "zip_def": damaged("zip asks for decompression", sealed(header(zip="DEF"))),
        "header_extra_member": damaged("a member that no reader knows", sealed(header(x="y"))),
        "header_member_twice": damaged("kid occurs twice, the same", sealed(repeated("kid"))),
        "header_not_json": damaged("the header is no JSON", sealed("alg=dir")),
        "header_array": damaged("the header is an array of the values", sealed(list(header().values()))),
        "header_rewritten": damaged(
            "the same members in another order, put in the place of the authenticated ones",
            [b64(compact(dict(reversed(header().items()))).encode()), *sealed()[1:]]),
        "kid_upper_case_version": damaged("the key version in upper case", sealed(header(kid=f"obo-{TENANT}/{'A' * 32}"))),
        "kid_short_version": damaged("the key version has 31 digits", sealed(header(kid=f"obo-{TENANT}/{'0' * 31}"))),
        "kid_no_version": damaged("no key version", sealed(header(kid=f"obo-{TENANT}"))),
        "kid_path": damaged("a path that leads elsewhere", sealed(header(kid=f"../deletedsecrets/{VERSION}"))),
        "kid_query": damaged("a query behind the version", sealed(header(kid=f"obo-{TENANT}/{VERSION}?x"))),
        "kid_url": damaged("the whole URL of a secret", sealed(header(kid=f"https://evil.example/secrets/obo-{TENANT}/{VERSION}"))),
        "kid_number": damaged("kid is a number", sealed(header(kid=1))),
        "kid_other_tenant": not_bound("the key of another tenant", sealed(header(kid=f"obo-{OTHER_TENANT}/{VERSION}"))),
        "bnd_short": damaged("a binding of 31 bytes", sealed(header(bnd=b64(bytes(31))))),
        "bnd_padded": damaged("a padded binding", sealed(header(bnd=header()["bnd"] + "="))),
        "bnd_missing": damaged("no binding", sealed(header(bnd=None))),
        "bnd_other_user": not_bound("sealed for another user", sealed(header(user=f"{TENANT}.{OTHER_OBJECT}"))),
        "bnd_other_tenant": not_bound("sealed for another tenant", sealed(header(tenant=OTHER_TENANT))),
        "bnd_other_client": not_bound("sealed for another app", sealed(header(client=OTHER_OBJECT))),
        "bnd_other_nonce": not_bound("sealed for another enrolment of the same user", sealed(header(nonce="another"))),
        "bnd_run_together": not_bound(
            "the same characters, divided otherwise among user and nonce",
            sealed(header(user=USER[:-1], nonce=USER[-1] + NONCE))),
        "bnd_swapped": damaged(
            "the binding of another user replaced by the right one without the key",
            [sealed()[0], *sealed(header(user=f"{TENANT}.{OTHER_OBJECT}"))[1:]]),
        "user_other_inside": not_bound(
            "the right binding, another user in the plaintext",
            sealed(plaintext={**PLAINTEXT, "user_id": f"{TENANT}.{OTHER_OBJECT}"})),
        "key_other": damaged("sealed under another key", sealed(key=bytes(32))),
        "parts_four": damaged("four parts", token.rpartition(".")[0]),
        "parts_six": damaged("six parts", token + "."),
        "second_part_not_empty": damaged("an encrypted key, which dir has not", with_part(1, lambda _: "AAAA")),
        "iv_short": damaged("an IV of 11 bytes", with_part(2, lambda _: b64(IV[:-1]))),
        "iv_long": damaged("an IV of 13 bytes", with_part(2, lambda _: b64(IV + b"\0"))),
        "iv_16_bytes": damaged("an IV of 16 bytes, with which GCM would work", sealed(iv=bytes(16))),
        "tag_short": damaged("a tag of 15 bytes, the first 15 right", with_part(4, lambda part: b64(
            base64.urlsafe_b64decode(part + "==")[:15]))),
        "tag_12_bytes": damaged("a tag of 12 bytes, with which GCM would work", with_part(4, lambda part: part[:16])),
        "tag_long": damaged("a tag of 17 bytes", with_part(4, lambda part: b64(base64.urlsafe_b64decode(part + "==") + b"\0"))),
        "tag_empty": damaged("no tag", with_part(4, lambda _: "")),
        "tag_flipped": damaged("one bit of the tag changed", with_part(4, lambda part: ("B" if part[0] == "A" else "A") + part[1:])),
        "ciphertext_flipped": damaged("one bit of the ciphertext changed", with_part(3, lambda part: bits[bits.index(part[0]) ^ 1] + part[1:])),
        "ciphertext_empty": damaged("no ciphertext", with_part(3, lambda _: "")),
        "base64_padded": damaged("padded base64url", with_part(4, lambda part: part + "==")),
        "base64_standard_alphabet": damaged("+ and / in the place of - and _", sealed()[0].replace("-", "+") + "." + ".".join(
            part.replace("-", "+").replace("_", "/") for part in sealed(plaintext={**PLAINTEXT, "refresh_token": "0.AX-vector-1"})[1:])),
        "base64_stray_bits": damaged("bits behind the last byte of the tag that are not zero", with_part(
            4, lambda part: part[:-1] + bits[bits.index(part[-1]) | 1])),
        "base64_space": damaged("a space in the ciphertext", with_part(3, lambda part: part[:4] + " " + part[4:])),
        "truncated": damaged("the last character is missing", token[:-1]),
        "newline_at_the_end": damaged("a line ends behind the token", token + "\n"),
        "empty": damaged("nothing", ""),
        "json_serialization": damaged("RFC 7516 JSON serialization", compact({
            "protected": sealed()[0], "iv": sealed()[2], "ciphertext": sealed()[3], "tag": sealed()[4]})),
        "plaintext_not_json": damaged("the plaintext is the refresh token alone", sealed(plaintext=b"0.AX-vector")),
        "plaintext_not_utf8": damaged("the plaintext is no UTF-8", sealed(plaintext=b'{"refresh_token":"\xff","user_id":"u","scope":"s"}')),
        "plaintext_array": damaged("an array of the values", sealed(plaintext=compact(list(PLAINTEXT.values())).encode())),
        "plaintext_extra_member": damaged("a member that no reader knows", sealed(plaintext={**PLAINTEXT, "x": "y"})),
        "plaintext_without_scope": damaged("no scope", sealed(plaintext={k: v for k, v in PLAINTEXT.items() if k != "scope"})),
        "rfc_dir_without_type": damaged(
            "a JWE with dir and A256GCM that is nobody's sealed token (kid k1)",
            sealed({"alg": "dir", "enc": "A256GCM", "kid": "k1"}, b'{"rt":"demo"}')),
    }


def files() -> dict[str, str]:
    made = {}
    for name, (expect, comment, token, values) in vectors().items():
        head = {"expect": expect, "comment": comment, "client": CLIENT, "tenant": TENANT, "user": USER, "nonce": NONCE,
                "key": KEY.hex(), **values}
        made[name] = "".join(f"{key}: {value}\n" for key, value in head.items()) + f"\n{token}\n"
    return made


def main() -> None:
    match sys.argv[1:]:
        case ["--check", folder]:
            there = {path.name: path.read_text() for path in Path(folder).iterdir()}
            made = files()
            wrong = sorted(name for name in there.keys() | made.keys() if there.get(name) != made.get(name))
            if wrong:
                sys.exit(f"differ from what vectors.py makes: {', '.join(wrong)}")
        case [folder]:
            for name, text in files().items():
                (Path(folder) / name).write_text(text)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
