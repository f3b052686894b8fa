"""Microsoft's azure-identity, unmodified: On-Behalf-Of, refresh and client credentials at the emulator of Entra ID."""

import asyncio
import os
import time

from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import AsyncioRequestsTransport
from azure.identity import CertificateCredential, ClientSecretCredential, OnBehalfOfCredential
from azure.identity.aio import OnBehalfOfCredential as AsyncOnBehalfOfCredential

GRAPH = "https://graph.microsoft.com"
VAULT = "https://vault.azure.net/.default"
APP = (os.environ["TENANT"], os.environ["CLIENT_ID"])
CERTIFICATE = (os.environ["PRIVATE_KEY"] + os.environ["CERTIFICATE"]).encode()


def granted(what, token):
    """A token, which was good when it came."""
    assert token.token and token.expires_on > time.time() - 3, what
    print(what, "granted")


async def refresh(name, credential):
    """The asynchronous client, which is other code: it redeems the refresh token that it kept when a token is old."""
    async with AsyncOnBehalfOfCredential(
        *APP, user_assertion=os.environ["ASSERTION"], transport=AsyncioRequestsTransport(), **credential
    ) as on_behalf_of:
        granted(f"{name}: on behalf of", await on_behalf_of.get_token(f"{GRAPH}/User.Read"))
        # Tokens live for 2 s here.
        await asyncio.sleep(3)
        granted(f"{name}: refresh", await on_behalf_of.get_token(f"{GRAPH}/User.Read"))


for name, credential in {
    "secret": {"client_secret": os.environ["CLIENT_SECRET"]},
    "certificate": {"client_certificate": CERTIFICATE},
}.items():
    on_behalf_of = OnBehalfOfCredential(*APP, user_assertion=os.environ["ASSERTION"], **credential)
    granted(f"{name}: on behalf of", on_behalf_of.get_token(f"{GRAPH}/User.Read"))
    asyncio.run(refresh(name, credential))

granted("secret: client credentials", ClientSecretCredential(*APP, os.environ["CLIENT_SECRET"]).get_token(VAULT))
granted(
    "certificate: client credentials",
    CertificateCredential(*APP, certificate_data=CERTIFICATE).get_token(VAULT, enable_cae=True),
)
try:
    ClientSecretCredential(*APP, "wrong").get_token(VAULT)
except ClientAuthenticationError as error:
    assert "AADSTS7000215" in error.message, error.message
else:
    raise AssertionError("a wrong secret was taken")
