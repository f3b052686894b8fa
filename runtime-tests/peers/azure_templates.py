"""Bicep as an ARM template, and what a template deploys, judged by Microsoft's own management models.

`compile FILE` prints the ARM template of a Bicep file: the language is read by tree-sitter's grammar, and by a second parser, and only
what scripts/azure/main.bicep uses of it is known. `deploy` reads {"template", "parameters"} and prints the resources that ARM would be
asked for; a property that the model of its resource does not have, or of another type, is an error. So are parameters that the
template does not have, and values that it does not allow.
"""

import importlib
import json
import re
import sys
import typing
from enum import EnumMeta

MODELS = {
    "Microsoft.KeyVault/vaults": ("azure.mgmt.keyvault.models", "VaultCreateOrUpdateParameters"),
    "Microsoft.Authorization/roleDefinitions": ("azure.mgmt.authorization.v2022_04_01.models", "RoleDefinition"),
    "Microsoft.Authorization/roleAssignments": ("azure.mgmt.authorization.v2022_04_01.models", "RoleAssignmentCreateParameters"),
    "Microsoft.ManagedIdentity/userAssignedIdentities": ("azure.mgmt.msi.v2024_11_30.models", "Identity"),
    "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials":
        ("azure.mgmt.msi.v2024_11_30.models", "FederatedIdentityCredential"),
    "Microsoft.OperationalInsights/workspaces": ("azure.mgmt.loganalytics.models", "Workspace"),
    "Microsoft.Insights/actionGroups": ("azure.mgmt.monitor.models", "ActionGroupResource"),
    "Microsoft.Insights/scheduledQueryRules": ("azure.mgmt.monitor.models", "ScheduledQueryRuleResource"),
    "Microsoft.App/managedEnvironments": ("azure.mgmt.appcontainers.models", "ManagedEnvironment"),
    "Microsoft.App/containerApps": ("azure.mgmt.appcontainers.models", "ContainerApp"),
    # In none of the packages.
    "Microsoft.Insights/diagnosticSettings": None,
}
# Members of a template's resource that are none of the request's body.
OF_TEMPLATE = {"type", "apiVersion", "name", "condition", "scope", "dependsOn"}


# Bicep to ARM.


class Compiler:
    def __init__(self, text):
        import pycep
        import tree_sitter
        import tree_sitter_bicep

        pycep.BicepParser().parse(text=text)
        parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_bicep.language()))
        self.root = parser.parse(text.encode()).root_node
        check_whole(self.root)
        self.parameters, self.variables, self.resources, self.outputs = {}, {}, {}, {}
        self.locals, self.used = [], None

    def template(self):
        decorators = {}
        for node in children(self.root):
            kind = node.type
            if kind == "decorators":
                decorators = dict(self.decorator(it) for it in children(node))
                continue
            getattr(self, kind)(node, decorators)
            decorators = {}
        # All names are known only now.
        return {
            "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
            "contentVersion": "1.0.0.0",
            "parameters": {name: make() for name, make in self.parameters.items()},
            "variables": {name: self.value(node) for name, node in self.variables.items()},
            "resources": [self.resource(symbol) for symbol in self.resources],
            "outputs": {name: make() for name, make in self.outputs.items()},
        }

    def comment(self, node, _):
        pass

    def target_scope_assignment(self, node, _):
        assert text_of(children(node)[-1]) == "'resourceGroup'"

    def decorator(self, node):
        call = children(node)[0]
        arguments = children(call.child_by_field_name("arguments"))
        return text_of(call.child_by_field_name("function")), self.value(arguments[0]) if arguments else True

    def parameter_declaration(self, node, decorators):
        name, kind, *default = children(node)

        def make():
            kind_of = "securestring" if "secure" in decorators else text_of(kind)
            made = {"type": kind_of}
            if default:
                made["defaultValue"] = self.value(default[0])
            for decorator, member in {
                "allowed": "allowedValues", "minLength": "minLength", "maxLength": "maxLength", "minValue": "minValue",
                "maxValue": "maxValue",
            }.items():
                if decorator in decorators:
                    made[member] = decorators[decorator]
            made["metadata"] = {"description": decorators["description"]}
            return made

        self.parameters[text_of(name)] = make

    def variable_declaration(self, node, _):
        name, value = children(node)
        self.variables[text_of(name)] = value

    def resource_declaration(self, node, _):
        name, kind, body = children(node)
        condition = None
        if body.type == "if_statement":
            condition, body = children(body)
        kind, version = text_of(kind).strip("'").split("@")
        members = {text_of(children(it)[0]): children(it)[1] for it in children(body)}
        self.resources[text_of(name)] = (kind, version, condition, members)

    def output_declaration(self, node, decorators):
        name, kind, value = children(node)

        def make():
            made = {"type": text_of(kind), "value": self.value(value)}
            if "description" in decorators:
                made["metadata"] = {"description": decorators["description"]}
            return made

        self.outputs[text_of(name)] = make

    def resource(self, symbol):
        kind, version, condition, members = self.resources[symbol]
        self.used = set()
        made = {}
        if condition is not None:
            made["condition"] = self.value(condition)
        made |= {"type": kind, "apiVersion": version}
        for name, node in members.items():
            if name == "scope":
                of, _, _, _ = self.resources[text_of(node)]
                self.used.add(text_of(node))
                made["scope"] = f"[format('{of}/{{0}}', {self.names(text_of(node))})]"
            elif name == "parent":
                self.used.add(text_of(node))
            elif name == "name" and "parent" in members:
                made["name"] = f"[format('{{0}}/{{1}}', {self.names(symbol)})]"
            else:
                made[name] = self.value(node)
        used = [self.id(it) for it in self.resources if it in self.used]
        if used:
            made["dependsOn"] = [f"[{it}]" for it in used]
        self.used = None
        return made

    def names(self, symbol):
        members = self.resources[symbol][3]
        name = self.expression(members["name"])
        return f"{self.names(text_of(members['parent']))}, {name}" if "parent" in members else name

    def id(self, symbol):
        return f"resourceId('{self.resources[symbol][0]}', {self.names(symbol)})"

    def value(self, node):
        match node.type:
            case "object":
                return {self.key(children(it)[0]): self.value(children(it)[1]) for it in children(node)}
            case "array":
                return [self.value(it) for it in children(node)]
            case "number" | "boolean" | "null":
                return json.loads(text_of(node))
            case "parenthesized_expression":
                return self.value(children(node)[0])
            case "string" if not has_interpolation(node):
                text = plain(node)
                return f"[{text}" if text.startswith("[") else text
        return f"[{self.expression(node)}]"

    def key(self, node):
        if node.type == "identifier":
            return text_of(node)
        return self.value(node)

    def expression(self, node):
        parts = children(node)
        match node.type:
            case "string" if has_interpolation(node):
                pattern, values = "", []
                for part in parts:
                    if part.type == "interpolation":
                        pattern += f"{{{len(values)}}}"
                        values.append(self.expression(children(part)[0]))
                    else:
                        pattern += piece(part).replace("{", "{{").replace("}", "}}")
                return f"format({quoted(pattern)}, {', '.join(values)})"
            case "string":
                return quoted(plain(node))
            case "number":
                return text_of(node)
            case "boolean" | "null":
                return f"{text_of(node)}()"
            case "array":
                return f"createArray({', '.join(self.expression(it) for it in parts)})"
            case "object":
                pairs = [f"{quoted(self.key(children(it)[0]))}, {self.expression(children(it)[1])}" for it in parts]
                return f"createObject({', '.join(pairs)})"
            case "parenthesized_expression":
                return self.expression(parts[0])
            case "ternary_expression":
                return f"if({', '.join(self.expression(it) for it in parts)})"
            case "unary_expression":
                assert text_of(node.child_by_field_name("operator")) == "!"
                return f"not({self.expression(node.child_by_field_name('argument'))})"
            case "binary_expression":
                name = {"==": "equals", "&&": "and", "||": "or"}[text_of(node.child_by_field_name("operator"))]
                left, right = (self.expression(node.child_by_field_name(it)) for it in ("left", "right"))
                return f"{name}({left}, {right})"
            case "lambda_expression":
                name = text_of(parts[0])
                self.locals.append(name)
                body = self.expression(parts[1])
                self.locals.pop()
                return f"lambda('{name}', {body})"
            case "call_expression":
                function = node.child_by_field_name("function")
                arguments = [self.expression(it) for it in children(node.child_by_field_name("arguments"))]
                if function.type == "member_expression":
                    symbol = text_of(function.child_by_field_name("object"))
                    self.use(symbol)
                    arguments = [self.id(symbol), f"'{self.resources[symbol][1]}'", *arguments]
                    function = function.child_by_field_name("property")
                return f"{text_of(function)}({', '.join(arguments)})"
            case "identifier":
                name = text_of(node)
                if name in self.locals:
                    return f"lambdaVariables('{name}')"
                if name in self.parameters:
                    return f"parameters('{name}')"
                assert name in self.variables, f"{name} is neither a parameter nor a variable"
                return f"variables('{name}')"
            case "member_expression":
                return self.member(node)
        raise ValueError(f"{node.type} is not known here: {text_of(node)}")

    def member(self, node):
        path = []
        while node.type == "member_expression":
            path.insert(0, text_of(node.child_by_field_name("property")))
            node = node.child_by_field_name("object")
        symbol = text_of(node)
        if node.type != "identifier" or symbol not in self.resources or symbol in self.locals:
            return ".".join([self.expression(node), *path])
        self.use(symbol)
        match path:
            case ["id"]:
                return self.id(symbol)
            case ["name"]:
                return self.expression(self.resources[symbol][3]["name"])
            case ["properties", *rest]:
                return ".".join([f"reference({self.id(symbol)}, '{self.resources[symbol][1]}')", *rest])
        raise ValueError(f"{path} of a resource is not known here")

    def use(self, symbol):
        if self.used is not None:
            self.used.add(symbol)


def check_whole(node):
    if node.is_error or node.is_missing:
        raise ValueError(f"no Bicep at line {node.start_point[0] + 1}: {text_of(node)[:80]}")
    for child in node.children:
        check_whole(child)


def children(node):
    return [it for it in node.children if it.is_named and it.type != "comment"]


def text_of(node):
    return node.text.decode()


def has_interpolation(node):
    return any(it.type == "interpolation" for it in node.children)


def piece(node):
    text = text_of(node)
    return {"\\'": "'", "\\\\": "\\", "\\n": "\n", "\\$": "$"}[text] if node.type == "escape_sequence" else text


def plain(node):
    return "".join(piece(it) for it in children(node))


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


# What ARM makes of a template.

TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(-?\d+)|([A-Za-z_]\w*)|(.))")


class Unknown(str):
    """What only Azure knows: its members are unknown, too."""


class Deployment:
    def __init__(self, template, given):
        self.template = template
        self.given = dict(given)
        declared = template["parameters"]
        strangers = set(given) - set(declared)
        if strangers:
            raise ValueError(f"the template has no parameter {sorted(strangers)}")
        self.values, self.locals = {}, {}
        for name, about in declared.items():
            value = self.parameter(name)
            kind = {"string": str, "securestring": str, "int": int, "object": dict, "array": list, "bool": bool}[about["type"]]
            if not isinstance(value, kind):
                raise ValueError(f"the parameter {name} is no {about['type']}")
            if value not in about.get("allowedValues", [value]):
                raise ValueError(f"the parameter {name} may not be {value!r}")
            size = value if isinstance(value, int) else len(value)
            if not about.get("minLength", about.get("minValue", size)) <= size <= about.get("maxLength", about.get("maxValue", size)):
                raise ValueError(f"the parameter {name} is too small or too big: {value!r}")

    def parameter(self, name):
        if name in self.given:
            return self.given[name]
        about = self.template["parameters"][name]
        if "defaultValue" not in about:
            raise ValueError(f"the parameter {name} is missing")
        return self.fill(about["defaultValue"])

    def resources(self):
        made = {}
        for resource in self.template["resources"]:
            resource = dict(resource)
            if not self.fill(resource.pop("condition", True)):
                continue
            needs = [self.fill(it) for it in resource.pop("dependsOn", [])]
            resource = self.fill(resource)
            names, kinds = resource["name"].split("/"), resource["type"].split("/")
            here = self.call_resourceId(resource["type"], *names)
            assert len(kinds) == len(names) + 1, here
            made[f"{resource.get('scope', '')}/{here}"] = (resource, here, needs)
        ids = {here for _, here, _ in made.values()}
        known = {it for resource in self.template["resources"] for it in [self.static_id(resource)]}
        for resource, here, needs in made.values():
            # What is asked for while it is deployed is there by then, and nothing is named that is nowhere in the template.
            for need in needs:
                assert need in known, f"{here} depends on {need}, which is not in the template"
            for other in ids - {here}:
                if f"«{other}»" in json.dumps(resource, ensure_ascii=False) and other not in needs:
                    raise ValueError(f"{here} asks for {other} and does not depend on it")
        return [resource for resource, _, _ in made.values()]

    def static_id(self, resource):
        return self.call_resourceId(resource["type"], *self.fill(resource["name"]).split("/"))

    def outputs(self):
        return {name: self.fill(about["value"]) for name, about in self.template["outputs"].items()}

    def fill(self, value):
        if isinstance(value, dict):
            return {self.fill(key): self.fill(it) for key, it in value.items()}
        if isinstance(value, list):
            return [self.fill(it) for it in value]
        if isinstance(value, str) and value.startswith("[["):
            return value[1:]
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            tokens = [it for it in TOKEN.findall(value[1:-1])] + [("", "", "", "")]
            expression, rest = self.read(tokens, 0)
            assert rest == len(tokens) - 1, value
            return self.evaluate(expression)
        return value

    def read(self, tokens, at):
        text, number, name, sign = tokens[at]
        at += 1
        if text:
            tree = ("value", text[1:-1].replace("''", "'"))
        elif number:
            tree = ("value", int(number))
        else:
            assert name and tokens[at][3] == "(", (name, sign)
            at, arguments = at + 1, []
            while tokens[at][3] != ")":
                argument, at = self.read(tokens, at)
                arguments.append(argument)
                if tokens[at][3] == ",":
                    at += 1
                    assert tokens[at][3] != ")"
            at += 1
            tree = ("call", name, arguments)
        while tokens[at][3] == ".":
            tree, at = ("member", tree, tokens[at + 1][2]), at + 2
        return tree, at

    def evaluate(self, tree):
        match tree:
            case ("value", value):
                return value
            case ("member", of, name):
                of = self.evaluate(of)
                return Unknown(f"{of}.{name}") if isinstance(of, Unknown) else of[name]
            case ("call", "if", [condition, yes, no]):
                return self.evaluate(yes if self.evaluate(condition) else no)
            case ("call", "lambda", [("value", name), body]):
                return lambda value: self.within(name, value, body)
            case ("call", name, arguments):
                return getattr(self, f"call_{name}")(*map(self.evaluate, arguments))
        raise ValueError(tree)

    def within(self, name, value, body):
        self.locals[name] = value
        return self.evaluate(body)

    def call_parameters(self, name):
        return self.parameter(name)

    def call_variables(self, name):
        return self.fill(self.template["variables"][name])

    def call_lambdaVariables(self, name):
        return self.locals[name]

    def call_reference(self, id, _version):
        return Unknown(f"«{id}»")

    def call_listKeys(self, id, _version):
        return Unknown(f"«{id}»")

    call_resourceGroup = staticmethod(lambda: {"id": "/subscriptions/S/resourceGroups/G", "location": "westeurope"})
    call_tenant = staticmethod(lambda: {"tenantId": "11111111-1111-4111-8111-111111111111"})
    call_environment = staticmethod(lambda: {"suffixes": {"keyvaultDns": ".vault.azure.net"}})
    call_subscriptionResourceId = staticmethod(lambda kind, name: f"/subscriptions/S/providers/{kind}/{name}")
    call_uniqueString = staticmethod(lambda *parts: f"{abs(zlib_crc(parts)):013d}"[:13])
    call_guid = staticmethod(lambda *parts: str(uuid_of(parts)))
    call_take = staticmethod(lambda text, count: text[:count])
    call_empty = staticmethod(lambda value: len(value) == 0)
    call_not = staticmethod(lambda value: not value)
    call_and = staticmethod(lambda *values: all(values))
    call_or = staticmethod(lambda *values: any(values))
    call_equals = staticmethod(lambda one, other: one == other)
    call_true = staticmethod(lambda: True)
    call_false = staticmethod(lambda: False)
    call_json = staticmethod(json.loads)
    call_string = staticmethod(lambda value: value if isinstance(value, str) else json.dumps(value))
    call_toUpper = staticmethod(str.upper)
    call_format = staticmethod(str.format)
    call_createArray = staticmethod(lambda *values: list(values))
    call_createObject = staticmethod(lambda *pairs: dict(zip(pairs[::2], pairs[1::2])))
    call_concat = staticmethod(lambda *lists: sum(lists, []))
    call_items = staticmethod(lambda value: [{"key": key, "value": value[key]} for key in sorted(value)])
    call_map = staticmethod(lambda values, function: [function(it) for it in values])

    @staticmethod
    def call_resourceId(kind, *names):
        provider, *kinds = kind.split("/")
        path = "/".join(f"{one}/{other}" for one, other in zip(kinds, names, strict=True))
        return f"/subscriptions/S/resourceGroups/G/providers/{provider}/{path}"


def zlib_crc(parts):
    import zlib

    return zlib.crc32("|".join(parts).encode())


def uuid_of(parts):
    import uuid

    return uuid.uuid5(uuid.NAMESPACE_URL, "|".join(parts))


# Microsoft's models, of two generations.


def judge(resource):
    found = MODELS[resource["type"]]
    if found:
        models, name = importlib.import_module(found[0]), found[1]
        body = {key: value for key, value in resource.items() if key not in OF_TEMPLATE}
        conforms(body, getattr(models, name), models, resource["type"])


def conforms(value, kind, models, path):
    if isinstance(kind, str):
        return conforms_to_name(value, kind, models, path)
    if hasattr(kind, "_attribute_map"):
        return conforms_to_map(value, kind, models, path)
    if isinstance(kind, type) and any(it.__name__ == "Model" for it in kind.__mro__):
        return conforms_to_fields(value, kind, models, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        # A text with known values is told as either; one that is not known is most likely misspelt.
        if any(isinstance(it, EnumMeta) for it in arguments):
            arguments = [it for it in arguments if it is not str]
        failures = []
        for it in arguments:
            try:
                return conforms(value, it, models, path)
            except ValueError as failure:
                failures.append(failure)
        raise failures[0]
    if origin is list:
        require(isinstance(value, list), path, "is no list")
        return [conforms(it, arguments[0], models, f"{path}[]") for it in value]
    if origin is dict:
        require(isinstance(value, dict), path, "is no object")
        return [conforms(it, arguments[1], models, f"{path}.{key}") for key, it in value.items()]
    if isinstance(kind, EnumMeta):
        return require(value in [it.value for it in kind], path, f"may not be {value!r}")
    if kind is typing.Any:
        return None
    kind = {float: (int, float)}.get(kind, kind)
    if kind.__class__ is type and kind.__name__ in ("datetime", "timedelta"):
        kind = str
    return require(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), path, f"is no {kind}")


def conforms_to_name(value, kind, models, path):
    if kind.startswith("["):
        require(isinstance(value, list), path, "is no list")
        return [conforms(it, kind[1:-1], models, f"{path}[]") for it in value]
    if kind.startswith("{"):
        require(isinstance(value, dict), path, "is no object")
        return [conforms(it, kind[1:-1], models, f"{path}.{key}") for key, it in value.items()]
    plain_kinds = {
        "str": str, "int": int, "bool": bool, "float": float, "object": typing.Any, "duration": str, "iso-8601": str, "rfc-1123": str,
    }
    return conforms(value, plain_kinds.get(kind) or getattr(models, kind), models, path)


def conforms_to_map(value, kind, models, path):
    """An attribute's key may lead through objects that have no model of their own."""
    require(isinstance(value, dict), path, "is no object")
    known = {}
    for attribute, about in kind._attribute_map.items():
        rules = kind._validation.get(attribute, {})
        known[about["key"]] = (about["type"], rules)
    def walk(value, before):
        for name, it in value.items():
            key = before + name.replace(".", "\\.")
            if key in known:
                kind_of, rules = known[key]
                require(not rules.get("readonly"), f"{path}.{key}", "can only be read")
                conforms(it, kind_of, models, f"{path}.{key}")
                for rule, holds in {
                    "max_length": lambda limit: len(it) <= limit, "min_length": lambda limit: len(it) >= limit,
                    "maximum": lambda limit: it <= limit, "minimum": lambda limit: it >= limit,
                    "pattern": lambda pattern: re.match(pattern, it),
                }.items():
                    require(rule not in rules or holds(rules[rule]), f"{path}.{key}", f"breaks {rule} {rules.get(rule)}")
            else:
                require(any(other.startswith(f"{key}.") for other in known), f"{path}.{key}", "is not known")
                walk(it, f"{key}.")
    walk(value, "")
    for key, (_, rules) in known.items():
        if rules.get("required"):
            found = value
            for name in key.split("."):
                found = found.get(name, {}) if isinstance(found, dict) else {}
            require(found != {}, f"{path}.{key}", "is missing")


def conforms_to_fields(value, kind, models, path):
    require(isinstance(value, dict), path, "is no object")
    kind({})  # fills in the names of its fields
    hints = {}
    for base in reversed(kind.__mro__):
        names = vars(sys.modules[base.__module__]) | {"_models": models} | vars(typing)
        for attribute, hint in vars(base).get("__annotations__", {}).items():
            hints[attribute] = eval(hint, names) if isinstance(hint, str) else hint
    fields = {field._rest_name: (attribute, field) for attribute, field in kind._attr_to_rest_field.items()}
    for name, it in value.items():
        require(name in fields, f"{path}.{name}", "is not known")
        attribute, field = fields[name]
        require(field._visibility != ["read"], f"{path}.{name}", "can only be read")
        least, most = bounds(kind, attribute)
        require(least is None or it >= least, f"{path}.{name}", f"is less than {least}: {it!r}")
        require(most is None or it <= most, f"{path}.{name}", f"is more than {most}: {it!r}")
        conforms(it, resolve(hints[attribute], models), models, f"{path}.{name}")
    for name, (attribute, field) in fields.items():
        optional = type(None) in typing.get_args(hints[attribute])
        require(name in value or optional or field._visibility == ["read"], f"{path}.{name}", "is missing")


def bounds(kind, attribute):
    """What a number may be, which models of this generation have in their documentation alone."""
    documented = re.search(rf":ivar {attribute}: (.*?):vartype", kind.__doc__ or "", re.S)
    text = " ".join(documented[1].split()) if documented else ""
    found = [re.search(rf"{end} value is (\d+)", text) for end in ("Minimum", "Maximum")]
    return [int(it[1]) if it else None for it in found]


def resolve(hint, models):
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        return eval(hint, {"_models": models} | vars(typing))
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Union:
        return typing.Union[tuple(resolve(it, models) for it in arguments)]
    if typing.get_origin(hint) is list:
        return list[resolve(arguments[0], models)]
    if typing.get_origin(hint) is dict:
        return dict[str, resolve(arguments[1], models)]
    return hint


def require(holds, path, problem):
    if not holds:
        raise ValueError(f"{path} {problem}")


def main():
    match sys.argv[1:]:
        case ["compile", file]:
            with open(file, encoding="utf-8") as source:
                text = source.read()
            print(json.dumps(Compiler(text).template(), indent=2, ensure_ascii=False))
        case ["deploy"]:
            given = json.load(sys.stdin)
            deployment = Deployment(given["template"], given["parameters"])
            resources = deployment.resources()
            for resource in resources:
                judge(resource)
            print(json.dumps({"resources": resources, "outputs": deployment.outputs()}))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, AssertionError, KeyError) as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")
