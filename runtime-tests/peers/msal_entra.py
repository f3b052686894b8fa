"""Microsoft's msal, unmodified: On-Behalf-Of, refresh and client credentials at the emulator of Entra ID."""

import os

import msal

GRAPH = "https://graph.microsoft.com"


def granted(what, result):
    """An answer that is no error, as the client reports errors."""
    assert "access_token" in result, f"{what}: {result.get('error')}: {result.get('error_description')}"
    print(what, "granted")
    return result


def judge(name, credential):
    """All three grants with one credential."""
    app = msal.ConfidentialClientApplication(
        os.environ["CLIENT_ID"],
        authority=f"https://login.microsoftonline.com/{os.environ['TENANT']}",
        client_credential=credential,
    )
    result = granted(
        f"{name}: on behalf of",
        app.acquire_token_on_behalf_of(os.environ["ASSERTION"], [f"{GRAPH}/User.Read"]),
    )
    assert result["token_source"] == "identity_provider", result["token_source"]
    assert "User.Read" in result["scope"], result["scope"]
    refresh_token = result["refresh_token"]
    for _ in range(2):
        # The old one stays valid, so it is redeemed twice.
        result = granted(
            f"{name}: refresh",
            app.acquire_token_by_refresh_token(refresh_token, [f"{GRAPH}/Mail.Read"]),
        )
        assert "Mail.Read" in result["scope"], result["scope"]
        assert result["refresh_token"] != refresh_token
    granted(f"{name}: client credentials", app.acquire_token_for_client(["https://vault.azure.net/.default"]))

    refused = app.acquire_token_on_behalf_of(os.environ["ASSERTION"] + "x", [f"{GRAPH}/User.Read"])
    assert refused["error"] == "invalid_grant" and refused["error_codes"] == [50013], refused


judge("secret", os.environ["CLIENT_SECRET"])
judge(
    "certificate",
    {
        "private_key": os.environ["PRIVATE_KEY"],
        "public_certificate": os.environ["CERTIFICATE"],
    },
)
wrong = msal.ConfidentialClientApplication(
    os.environ["CLIENT_ID"],
    authority=f"https://login.microsoftonline.com/{os.environ['TENANT']}",
    client_credential="wrong",
).acquire_token_for_client(["https://vault.azure.net/.default"])
assert wrong["error"] == "invalid_client" and wrong["error_codes"] == [7000215], wrong
