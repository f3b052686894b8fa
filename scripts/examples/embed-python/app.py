"""The same component as `../embed`, in Python: imports `behalf:vault` and keeps the records itself.

    componentize-py -d wit -d scripts/examples/wit -w example:embed/embed@0.1.0 \\
        componentize app -p scripts/examples/embed-python -o embed.wasm
"""

import secrets
from dataclasses import dataclass

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import vault
from wit_world.imports.vault import Draw, KeptOutcome_Refused, Purpose_Draw, StoredToken, Subject, Subject_Me, Subject_User, UserName


@dataclass
class Record:
    """What is kept of an enrolment: all four are needed to give the token back to the vault."""

    tenant: str
    nonce: str
    token: str
    key_version: str


# By storage id. It may be kept anywhere; here it is in this component's memory.
records: dict[str, Record] = {}


async def ask(call):
    """Waits for the vault. No error of the vault carries a secret, so it may be shown whole."""
    try:
        return await call
    except Err as error:
        raise Err(repr(error.value))


async def draw_for_subject(bearer: str, subject: Subject) -> str:
    # Whoever may not draw for this user is told so before anything is looked up, so that nobody learns who is enrolled.
    # A real one asks for a replacement only if the stored token is over a day old: each is a write.
    draw = Draw(scope=None, claims=None, replace=True)
    caller = await ask(vault.identify(bearer, subject, Purpose_Draw(draw), None))
    user, kept = caller.user, caller.kept
    record = records.get(user.id)
    if record is None:
        raise Err("not enrolled")
    # Drawn a moment ago, under the enrolment that is the current one now.
    if kept is not None and kept.nonce == record.nonce:
        if isinstance(kept.outcome, KeptOutcome_Refused):
            raise Err(repr(kept.outcome.value.error))
        return kept.outcome.value.access_token
    if kept is not None:
        vault.forget(user)
    issued = await ask(vault.access_token(bearer, subject, record.nonce, record.token, draw, None))
    # Removed or enrolled anew meanwhile: the access token does not leave.
    if records.get(user.id) is not record:
        raise Err("not enrolled")
    if issued.replacement is not None:
        record.token, record.key_version = issued.replacement.token, issued.replacement.key_version
    return issued.access_token


class Tokens(exports.Tokens):
    async def enrol(self, bearer: str) -> str:
        nonce = secrets.token_hex(16)
        enrolment = await ask(vault.enrol(bearer, nonce, None, None))
        user, sealed = enrolment.user, enrolment.sealed
        records[user.id] = Record(user.tenant, nonce, sealed.token, sealed.key_version)
        return user.id

    async def draw(self, bearer: str) -> str:
        return await draw_for_subject(bearer, Subject_Me())

    async def draw_for(self, bearer: str, tenant: str, object: str) -> str:
        return await draw_for_subject(bearer, Subject_User(UserName(tenant, object)))

    async def reseal(self) -> int:
        moved = 0
        for tenant in {record.tenant for record in records.values()}:
            newest = await ask(vault.newest_key_version(tenant, None))
            for user_id, record in list(records.items()):
                if record.tenant != tenant or record.key_version == newest.version:
                    continue
                token = record.token
                sealed = await ask(vault.reseal(StoredToken(tenant, user_id, record.nonce, token), None))
                # Only in the place of what was re-sealed: a draw may have put a newer one there.
                if sealed is not None and record.token == token:
                    record.token, record.key_version = sealed.token, sealed.key_version
                    moved += 1
        return moved
