"""Microsoft's azure-keyvault-secrets, unmodified: a secret's whole life at the emulator of Key Vault.

The client asks for the challenge before it sends anything, and checks that the vault's name fits the resource in it.
"""

import base64
import os

from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.identity import ClientSecretCredential
from azure.keyvault.secrets import SecretClient

VAULT = "https://demo.vault.azure.net"
NAME = "judged"


def refused(what, error, call):
    """Runs what has to fail, and returns the failure."""
    try:
        call()
    except error as failure:
        print(what, "refused")
        return failure
    raise AssertionError(f"{what} was not refused")


credential = ClientSecretCredential(os.environ["TENANT"], os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"])
with SecretClient(VAULT, credential) as client:
    values = [base64.b64encode(os.urandom(32)).decode() for _ in range(3)]
    versions = [client.set_secret(NAME, value, content_type="application/jose").properties for value in values]
    assert len({version.version for version in versions}) == 3, versions
    assert versions[0].id == f"{VAULT}/secrets/{NAME}/{versions[0].version}", versions[0].id

    newest = client.get_secret(NAME)
    assert (newest.value, newest.properties.version) == (values[2], versions[2].version)
    assert newest.properties.recovery_level == "Recoverable+Purgeable" and newest.properties.recoverable_days == 90
    assert client.get_secret(NAME, versions[0].version).value == values[0]
    refused("an unknown version", ResourceNotFoundError, lambda: client.get_secret(NAME, "0" * 32))
    refused("an unknown secret", ResourceNotFoundError, lambda: client.get_secret("unknown"))

    # One a page: each next page has the port in its link.
    listed = [secret.name for secret in client.list_properties_of_secrets(max_page_size=1)]
    assert NAME in listed and len(listed) > 2, listed
    listed = [version.version for version in client.list_properties_of_secret_versions(NAME, max_page_size=1)]
    assert listed == sorted(version.version for version in versions), listed
    assert list(client.list_properties_of_secret_versions("unknown")) == []

    disabled = client.update_secret_properties(NAME, enabled=False)
    assert disabled.enabled is False and disabled.content_type == "application/jose"
    failure = refused("a disabled secret", HttpResponseError, lambda: client.get_secret(NAME))
    assert failure.status_code == 403 and "disabled" in failure.message, failure
    assert client.get_secret(NAME, versions[0].version).value == values[0]
    client.update_secret_properties(NAME, versions[2].version, enabled=True)
    assert client.get_secret(NAME).value == values[2]

    def delete():
        """Deletes it, and waits until that is over."""
        poller = client.begin_delete_secret(NAME)
        refused("a secret being deleted", ResourceExistsError, lambda: client.set_secret(NAME, "x"))
        poller.wait()
        assert poller.done()
        deleted = client.get_deleted_secret(NAME)
        assert deleted.recovery_id == poller.result().recovery_id == f"{VAULT}/deletedsecrets/{NAME}"
        assert (deleted.scheduled_purge_date - deleted.deleted_date).days == 90
        assert [secret.name for secret in client.list_deleted_secrets()] == [NAME]

    delete()
    refused("a deleted secret", ResourceNotFoundError, lambda: client.get_secret(NAME))
    refused("the name of a deleted secret", ResourceExistsError, lambda: client.set_secret(NAME, "x"))
    recovered = client.begin_recover_deleted_secret(NAME)
    recovered.wait()
    assert recovered.result().name == NAME
    assert client.get_secret(NAME, versions[1].version).value == values[1]
    refused("a secret that is not deleted", ResourceNotFoundError, lambda: client.get_deleted_secret(NAME))

    delete()
    client.purge_deleted_secret(NAME)
    refused("a purged secret", ResourceNotFoundError, lambda: client.get_deleted_secret(NAME))
    refused("a purged secret", ResourceNotFoundError, lambda: client.get_secret(NAME))
    client.set_secret(NAME, values[0])
    assert len(list(client.list_properties_of_secret_versions(NAME))) == 1
