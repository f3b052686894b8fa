"""Is the Azure CLI itself, logged in, with a small Microsoft Graph in place of the network: applications and service principals of one
tenant, as strict as Microsoft's in what can go wrong with a registration. $AZ_STATE is a folder with what there is (graph.json), in
which each request is a line of `requests`. What was just made is unknown for one request, as it is at Microsoft for a while.
"""

import io
import json
import os
import re
import sys
import uuid
from pathlib import Path

TENANT = "11111111-1111-4111-8111-111111111111"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
GRAPH = "00000003-0000-0000-c000-000000000000"
# Delegated permissions of Microsoft Graph that are used here: nobody can consent to one that it does not have.
OF_GRAPH = {
    "e1fe6dd8-ba31-4d61-89e7-88639da4683d": "User.Read",
    "7427e0e9-2fba-42fe-b0c0-848c9e6a8182": "offline_access",
    "465a38f9-76ea-45b9-9f34-9e8b0d4b0b42": "Calendars.Read",
}


def main():
    folder = Path(os.environ["AZ_STATE"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("AZURE_", "ARM_"))]:
        del os.environ[name]
    os.environ["AZURE_CONFIG_DIR"] = str(folder)
    os.environ["AZURE_EXTENSION_DIR"] = str(folder / "extensions")
    os.environ["AZURE_CORE_COLLECT_TELEMETRY"] = "no"
    os.environ["AZURE_EXTENSION_USE_DYNAMIC_INSTALL"] = "no"
    log_in(folder)
    graph = Graph(folder)

    import requests
    from azure.cli.core import get_default_cli
    from azure.cli.core._profile import Profile

    requests.Session.send = lambda _, request, **__: graph.answer(request)
    Profile.get_raw_token = lambda *_, **__: (("Bearer", "emulated", {}), None, TENANT)
    return get_default_cli().invoke(sys.argv[1:])


def log_in(folder):
    subscription = {
        "id": UNKNOWN, "name": "emulated", "state": "Enabled", "isDefault": True, "tenantId": TENANT, "environmentName": "AzureCloud",
        "homeTenantId": TENANT, "user": {"name": "somebody@example.com", "type": "user"},
    }  # fmt: skip
    (folder / "azureProfile.json").write_text(json.dumps({"subscriptions": [subscription], "installationId": UNKNOWN}))


class Refused(Exception):
    """What Microsoft Graph does not do."""


class Graph:
    """Applications and service principals of one tenant, as strict as Microsoft Graph in what can go wrong in a registration."""

    def __init__(self, folder):
        self.file = folder / "graph.json"
        self.requests = folder / "requests"
        empty = {"applications": [], "servicePrincipals": [], "federated": [], "assigned": [], "new": []}
        self.has = json.loads(self.file.read_text()) if self.file.exists() else empty

    def answer(self, request):
        import requests

        with self.requests.open("a") as requested:
            requested.write(f"{request.method} {request.path_url}\n")
        answer = requests.Response()
        answer.request, answer.url = request, request.url
        answer.headers["Content-Type"] = "application/json"
        try:
            body = json.loads(request.body) if request.body else None
            answer.status_code, content = self.route(request.method, request.url, body)
            self.file.write_text(json.dumps(self.has, indent=1))
        except Refused as refused:
            answer.status_code = 400
            content = {"error": {"code": "Request_BadRequest", "message": str(refused)}}
        answer._content = b"" if content is None else json.dumps(content).encode()
        answer.reason = "emulated"
        answer.raw = io.BytesIO(answer._content)
        return answer

    def route(self, method, url, body):
        from urllib.parse import parse_qs, unquote, urlsplit

        parts = urlsplit(url)
        if parts.netloc != "graph.microsoft.com" or not parts.path.startswith("/v1.0/"):
            raise Refused(f"nothing is at {url}")
        kind, *rest = unquote(parts.path).removeprefix("/v1.0/").split("/")
        query = parse_qs(parts.query)
        by_app = re.fullmatch(r"(applications|servicePrincipals)\(appId='(.*)'\)", kind)
        if by_app:
            kind = by_app[1]
            rest = [next((it["id"] for it in self.has[kind] if it["appId"] == by_app[2]), UNKNOWN), *rest]
        if kind not in ("applications", "servicePrincipals"):
            raise Refused(f"nothing is called {kind}")
        if rest and rest[0] in self.has["new"] and method != "GET":
            self.has["new"].remove(rest[0])
            return 404, {"error": {"code": "Request_ResourceNotFound", "message": f"there is no {rest[0]} yet"}}
        if not rest:
            if method == "GET":
                return 200, {"value": self.filtered(kind, query.get("$filter", [""])[0])}
            if method == "POST":
                return 201, self.make(kind, body)
        else:
            one = next((it for it in self.has[kind] if it["id"] == rest[0]), None)
            if one is None:
                return 404, {"error": {"code": "Request_ResourceNotFound", "message": f"there is no {rest[0]}"}}
            match (method, kind, rest[1:]):
                case ("GET", _, []):
                    return 200, one
                case ("PATCH", "applications", []):
                    self.change(one, body)
                    return 204, None
                case ("GET", "applications", ["federatedIdentityCredentials"]):
                    return 200, {"value": [it for it in self.has["federated"] if it["of"] == one["id"]]}
                case ("POST", "applications", ["federatedIdentityCredentials"]):
                    return 201, self.trust(one, body)
                case ("GET", "servicePrincipals", ["appRoleAssignedTo"]):
                    return 200, {"value": [it for it in self.has["assigned"] if it["resourceId"] == one["id"]]}
                case ("POST", "servicePrincipals", ["appRoleAssignedTo"]):
                    return 201, self.assign(one, body)
        raise Refused(f"there is no {method} {url}")

    def filtered(self, kind, wanted):
        conditions = re.findall(r"(\w+) eq '((?:[^']|'')*)'|startswith\((\w+),\s*'((?:[^']|'')*)'\)", wanted)
        found = self.has[kind]
        for same, whole, begins, start in conditions:
            name, text = (same, whole) if same else (begins, start)
            text = text.replace("''", "'").lower()
            found = [
                it for it in found if (str(it[name]).lower() == text if same else str(it[name]).lower().startswith(text))
            ]
        if wanted and not conditions:
            raise Refused(f"no such filter: {wanted}")
        return found

    def make(self, kind, body):
        made = {"id": str(uuid.uuid4()), "appId": str(uuid.uuid4())}
        if kind == "servicePrincipals":
            application = next((it for it in self.has["applications"] if it["appId"] == body.get("appId")), None)
            if application is None or self.filtered(kind, f"appId eq '{body['appId']}'"):
                raise Refused("no such application, or it has a service principal")
            made |= {"appId": body["appId"], "displayName": application["displayName"]}
        else:
            made |= {
                "displayName": None, "signInAudience": "AzureADandPersonalMicrosoftAccount", "identifierUris": [], "appRoles": [],
                "api": {"requestedAccessTokenVersion": None, "oauth2PermissionScopes": [], "preAuthorizedApplications": [],
                        "knownClientApplications": [], "acceptMappedClaims": None},
                "optionalClaims": None, "requiredResourceAccess": [],
            }  # fmt: skip
            self.change(made, body)
        self.has[kind].append(made)
        if kind == "applications":
            self.has["new"].append(made["id"])
        return made

    def change(self, app, body):
        """Takes what is given in place of what there was; of `api`, member by member."""
        known = {
            "displayName", "signInAudience", "identifierUris", "appRoles", "api", "optionalClaims", "requiredResourceAccess",
            # What az makes besides.
            "isFallbackPublicClient", "publicClient", "web", "spa", "keyCredentials", "passwordCredentials",
        }  # fmt: skip
        after = json.loads(json.dumps(app))
        for name, content in body.items():
            if name not in known:
                raise Refused(f"an application has no {name}")
            if name != "api":
                after[name] = content
                continue
            for member, inner in (content or {}).items():
                if member not in app["api"]:
                    raise Refused(f"api has no {member}")
                after["api"][member] = inner
        if after["signInAudience"] not in ("AzureADMyOrg", "AzureADMultipleOrgs") and not after["identifierUris"] == []:
            raise Refused("this is not who behalf serves")
        for uri in after["identifierUris"]:
            if uri != f"api://{app['appId']}" and uri not in app["identifierUris"]:
                raise Refused(f"{uri} is not of a verified domain")
        resources = [it["resourceAppId"] for it in after["requiredResourceAccess"]]
        if len(set(resources)) != len(resources):
            raise Refused("a resource is there twice")
        for resource in after["requiredResourceAccess"]:
            ids = [it["id"] for it in resource["resourceAccess"]]
            if len(set(ids)) != len(ids):
                raise Refused("a permission is there twice")
            for it in resource["resourceAccess"]:
                if resource["resourceAppId"] == GRAPH and (it["id"] not in OF_GRAPH or it["type"] != "Scope"):
                    raise Refused(f"Microsoft Graph has no permission {it}")
        permissions = [*after["appRoles"], *after["api"]["oauth2PermissionScopes"]]
        for wanted, members in (
            (after["appRoles"], {"id", "value", "displayName", "description", "allowedMemberTypes", "isEnabled"}),
            (
                after["api"]["oauth2PermissionScopes"],
                {"id", "value", "type", "isEnabled", "adminConsentDisplayName", "adminConsentDescription"},
            ),
        ):
            for it in wanted:
                if not members <= it.keys():
                    raise Refused(f"{it.get('value')} lacks {members - it.keys()}")
                if set(it) - members - {"origin", "userConsentDisplayName", "userConsentDescription"}:
                    raise Refused(f"{it.get('value')} has more than is known")
                uuid.UUID(it["id"])
        for name in ("id", "value"):
            if len({it[name] for it in permissions}) != len(permissions):
                raise Refused(f"two of the app's permissions have the same {name}")
        kept = {json.dumps(it, sort_keys=True) for it in permissions}
        for it in [*app["appRoles"], *app["api"]["oauth2PermissionScopes"]]:
            if it["isEnabled"] and json.dumps(it, sort_keys=True) not in kept:
                raise Refused(f"{it['value']} has to be disabled before it is changed or removed")
        app.clear()
        app.update(after)

    def trust(self, app, body):
        if set(body) - {"description"} != {"name", "issuer", "subject", "audiences"}:
            raise Refused("a federated credential has other members")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{2,119}", body["name"]) or len(body["audiences"]) != 1:
            raise Refused("a name has 3 to 120 characters, and there is one audience")
        for other in self.has["federated"]:
            if other["of"] == app["id"] and (other["name"] == body["name"] or same_subject(other, body)):
                raise Refused("it has that federated credential")
        self.has["federated"].append({"id": str(uuid.uuid4()), "of": app["id"], **body})
        return self.has["federated"][-1]

    def assign(self, principal, body):
        app = next(it for it in self.has["applications"] if it["appId"] == principal["appId"])
        if set(body) != {"principalId", "resourceId", "appRoleId"} or body["resourceId"] != principal["id"]:
            raise Refused("an assignment has principalId, resourceId, appRoleId")
        if body["appRoleId"] not in [role["id"] for role in app["appRoles"]]:
            raise Refused("Permission being assigned was not found on application")
        if any(body.items() <= other.items() for other in self.has["assigned"]):
            raise Refused("Permission being assigned already exists on the object")
        self.has["assigned"].append({"id": uuid.uuid4().hex, **body})
        return self.has["assigned"][-1]


def same_subject(one, other):
    return (one["issuer"], one["subject"]) == (other["issuer"], other["subject"])


if __name__ == "__main__":
    sys.exit(main())
