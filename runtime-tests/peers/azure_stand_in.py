"""Stands in for `az`: as much of Entra ID's applications as scripts/azure/register-app asks for. $AZ_STATE is a file with what there is;
each call that changes it is a line of $AZ_STATE.changes. A call that is not known is an error.
"""

import json
import os
import re
import sys
import uuid

import jmespath

file = os.environ["AZ_STATE"]
try:
    with open(file, encoding="utf-8") as source:
        state = json.load(source)
except FileNotFoundError:
    state = {"apps": {}, "principals": {}, "trusted": {}, "assigned": []}

words = sys.argv[1:]
first = next((at for at, word in enumerate(words) if word.startswith("--")), len(words))
command, options, name = " ".join(words[:first]), {}, None
for word in words[first:]:
    if word.startswith("--"):
        name = word[2:]
        options[name] = []
    else:
        options[name].append(word)
one = {name: values[0] for name, values in options.items() if values}
app = state["apps"].get(one.get("id", ""))


def changed():
    with open(f"{file}.changes", "a", encoding="utf-8") as log:
        log.write(f"{command}\n")


def named(text):
    return re.fullmatch(r"\w+ eq '(.*)'", text)[1]


def rest():
    uri = one["uri"].removeprefix("https://graph.microsoft.com/v1.0/")
    if one["method"] == "get":
        return {"value": state["assigned"]}
    changed()
    assert one["headers"] == "Content-Type=application/json"
    body = json.loads(one["body"])
    if one["method"] == "post":
        state["assigned"].append(body | {"id": str(uuid.uuid4())})
        return None
    [of] = [it for it in state["apps"].values() if uri == f"applications/{it['id']}"]
    for member, value in body.items():
        of[member] = of[member] | value
    return None


def update():
    changed()
    members = {
        "sign-in-audience": "signInAudience", "identifier-uris": "identifierUris", "app-roles": "appRoles",
    }
    for option, values in options.items():
        if option == "requested-access-token-version":
            app["api"]["requestedAccessTokenVersion"] = int(values[0])
        elif option == "identifier-uris":
            app["identifierUris"] = values
        elif option in members:
            app[members[option]] = json.loads(values[0]) if option == "app-roles" else values[0]
        else:
            assert option == "id", option
    return None


def create():
    changed()
    made = {
        "appId": str(uuid.uuid4()), "id": str(uuid.uuid4()), "displayName": one["display-name"],
        "signInAudience": one["sign-in-audience"], "identifierUris": [], "appRoles": [],
        "api": {"requestedAccessTokenVersion": int(one["requested-access-token-version"]), "oauth2PermissionScopes": []},
        "optionalClaims": {"accessToken": [], "idToken": [], "saml2Token": []},
    }
    state["apps"][made["appId"]] = made
    return made


def principal():
    changed()
    state["principals"][one["id"]] = {"id": str(uuid.uuid4()), "appId": one["id"]}
    return state["principals"][one["id"]]


def trust():
    changed()
    state["trusted"].setdefault(one["id"], []).append(json.loads(one["parameters"]))


answer = {
    "account show": lambda: {"tenantId": "11111111-1111-4111-8111-111111111111"},
    "ad app list": lambda: [it for it in state["apps"].values() if it["displayName"] == named(one["filter"])],
    "ad app show": lambda: app,
    "ad app create": create,
    "ad app update": update,
    "ad sp list": lambda: [it for it in state["principals"].values() if it["appId"] == named(one["filter"])],
    "ad sp create": principal,
    "ad app federated-credential list": lambda: state["trusted"].get(one["id"], []),
    "ad app federated-credential create": trust,
    "rest": rest,
}[command]()
with open(file, "w", encoding="utf-8") as sink:
    json.dump(state, sink)
if "query" in one:
    answer = jmespath.search(one["query"], answer)
if answer is not None and one.get("output") == "json":
    print(json.dumps(answer, indent=2))
elif answer is not None and one.get("output") == "tsv":
    for it in answer if isinstance(answer, list) else [answer]:
        print(it)
