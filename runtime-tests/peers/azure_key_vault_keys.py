"""Microsoft's azure-keyvault-secrets, unmodified, looks at keys that `behalf key rotate` has made, and disables one."""

import base64
import os

from azure.identity import ClientSecretCredential
from azure.keyvault.secrets import SecretClient

TENANT = os.environ["TENANT"]
NAME = f"obo-{TENANT}"

credential = ClientSecretCredential(TENANT, os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"])
with SecretClient("https://demo.vault.azure.net", credential) as client:
    versions = list(client.list_properties_of_secret_versions(NAME))
    made = [version for version in versions if version.content_type == "application/vnd.behalf.key"]
    assert len(made) == 2, versions
    values = set()
    for version in made:
        assert version.enabled and version.not_before is None, version
        assert version.tags["tenant"] == TENANT and version.tags["team"] == "identity", version.tags
        assert version.tags["made-by"].startswith("behalf "), version.tags
        assert (version.expires_on - version.created_on).days in (89, 90), version
        value = client.get_secret(NAME, version.version).value
        assert len(base64.b64decode(value, validate=True)) == 32
        values.add(value)
    assert len(values) == 2
    newest = client.get_secret(NAME)
    assert newest.properties.version in [version.version for version in made]
    for version in made:
        if version.version != newest.properties.version:
            client.update_secret_properties(NAME, version.version, enabled=False)
            print(version.version)
