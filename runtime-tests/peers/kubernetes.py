"""Judges scripts/kubernetes: kubernetes.py FOLDER NAME…

Builds what `kubectl apply --kustomize` would take from each NAME below FOLDER, with as much of kustomize as is used there and no
more (https://kubectl.docs.kubernetes.io/references/kustomize/), and checks it: by the schemas of several versions of Kubernetes,
by the CRD of SpinApp, and by rules of our own. What the rules compare it with comes as JSON on standard input. Prints the objects by
NAME, or every defect and ends with 1.
"""

import copy
import functools
import json
import sys
from pathlib import Path, PurePosixPath

import jsonschema
import yaml
from kubernetes_validate import utils

# The oldest that is still run, one between, and the newest that there are schemas of.
VERSIONS = ("1.29", "1.33", "1.37")

# By what elements of lists are known in a patch; other lists are replaced as a whole
# (`patchMergeKey` in https://github.com/kubernetes/api).
MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
    "volumeMounts": "mountPath",
    "volumes": "name",
}

KUSTOMIZATION = {
    "apiVersion": ("kustomize.config.k8s.io/v1beta1", "kustomize.config.k8s.io/v1alpha1"),
    "kind": ("Kustomization", "Component"),
}

# Pods of SpinApp are made by spin-operator: with this port, these labels, and its defaults besides
# (pkg/spinapp/spinapp.go, internal/controller/spinapp_controller.go).
SPIN_PORT = {"name": "http-app", "containerPort": 80}

DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
TEXT, FLAG, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}


def members(required: tuple = (), **properties) -> dict:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def many(items: dict) -> dict:
    return {"type": "array", "items": items}


def core(kind: str) -> dict:
    """What is Kubernetes' own inside of it, as the newest schema has it."""
    return {"$ref": f"{DEFINITIONS}#/$defs/io.k8s.api.core.v1.{kind}"}


TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
SECONDS = "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"
HEADERS = many(members(("name", "value"), name=TEXT, value=TEXT))
PROBE = members(httpGet=members(("path",), path=TEXT, httpHeaders=HEADERS), **{name: NUMBER for name in SECONDS})
SOURCE = members(configMapKeyRef=core("ConfigMapKeySelector"), secretKeyRef=core("SecretKeySelector"))
OPTIONS = many(members(("name",), name=TEXT, value=TEXT, valueFrom=SOURCE))
STORES = many(members(("name", "type"), name=TEXT, type=TEXT, options=OPTIONS))
# config/crd/bases/core.spinkube.dev_spinapps.yaml of https://github.com/spinkube/spin-operator.
SPIN_APP = members(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "core.spinkube.dev/v1alpha1"},
    kind=TEXT,
    metadata={"$ref": f"{DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
    spec=members(
        ("executor", "image"),
        checks=members(readiness=PROBE, liveness=PROBE),
        components={"minItems": 1, **many(TEXT)},
        deploymentAnnotations=TEXTS,
        enableAutoscaling=FLAG,
        executor=TEXT,
        image=TEXT,
        imagePullSecrets=many(core("LocalObjectReference")),
        podAnnotations=TEXTS,
        podLabels=TEXTS,
        # Its webhook wants one at least, unless it scales by itself.
        replicas={"minimum": 1, **NUMBER},
        resources=members(limits=QUANTITIES, requests=QUANTITIES),
        runtimeConfig=members(
            keyValueStores=STORES,
            llmCompute=members(("type",), type=TEXT, options=OPTIONS),
            loadFromSecret=TEXT,
            sqliteDatabases=STORES,
        ),
        serviceAnnotations=TEXTS,
        variables=many(members(("name",), name=TEXT, value=TEXT, valueFrom=core("EnvVarSource"))),
        volumeMounts=many(core("VolumeMount")),
        volumes=many(core("Volume")),
    ),
)


class Defect(Exception):
    """What stops a build."""


# --- kustomize ---


class Builder:
    """Builds kustomizations, and remembers which files that took."""

    def __init__(self) -> None:
        self.used: set[Path] = set()

    def build(self, folder: Path) -> list:
        objects: list = []
        self.add(folder, objects, "Kustomization")
        return objects

    def add(self, folder: Path, objects: list, kind: str) -> None:
        known = self.read(folder / "kustomization.yaml")
        if len(known) != 1:
            raise Defect(f"{folder}: has to have one kustomization")
        settings = dict(known[0])
        for name, values in KUSTOMIZATION.items():
            if settings.pop(name, None) not in values:
                raise Defect(f"{folder}: {name} has to be one of {values}")
        if known[0]["kind"] != kind:
            raise Defect(f"{folder}: is no {kind}")
        for name in settings.pop("resources", []):
            if (folder / name).is_dir():
                self.add(folder / name, objects, "Kustomization")
            else:
                objects.extend(self.read(folder / name))
        for name in settings.pop("components", []):
            self.add(folder / name, objects, "Component")
        for generated in settings.pop("configMapGenerator", []):
            self.generate(folder, dict(generated), objects)
        for patch in settings.pop("patches", []):
            if list(patch) != ["path"]:
                raise Defect(f"{folder}: a patch has a path alone here")
            for change in self.read(folder / patch["path"]):
                merge(found(objects, change, folder / patch["path"]), change)
        if namespace := settings.pop("namespace", None):
            for it in objects:
                if it["kind"] != "Namespace":
                    it["metadata"]["namespace"] = namespace
        for image in settings.pop("images", []):
            if not rename(objects, image):
                raise Defect(f"{folder}: no container has the image {image['name']}")
        if settings:
            raise Defect(f"{folder}: {', '.join(settings)}: the judge does not know that of kustomize")

    def read(self, file: Path) -> list:
        self.used.add(file.resolve())
        try:
            return [it for it in yaml.safe_load_all(file.read_text()) if it]
        except FileNotFoundError:
            raise Defect(f"{file}: there is no such file") from None
        except yaml.YAMLError as error:
            raise Defect(f"{file}: {error}") from None

    def generate(self, folder: Path, settings: dict, objects: list) -> None:
        lines = settings.pop("literals", [])
        for name in settings.pop("envs", []):
            self.used.add((folder / name).resolve())
            try:
                text = (folder / name).read_text()
            except FileNotFoundError:
                raise Defect(f"{folder / name}: there is no such file") from None
            lines = lines + [it for it in text.splitlines() if it and not it.startswith("#")]
        data = dict(line.split("=", 1) for line in lines)
        made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": settings.pop("name")}, "data": data}
        behavior = settings.pop("behavior", "create")
        if settings or behavior not in ("create", "merge"):
            raise Defect(f"{folder}: {settings or behavior}: the judge does not know that of a generator")
        if behavior == "merge":
            merge(found(objects, made, folder), made)
        else:
            objects.append(made)


def found(objects: list, change: dict, where: Path) -> dict:
    """The object that a patch is for."""
    same = [it for it in objects if identity(it) == identity(change)]
    if len(same) != 1:
        raise Defect(f"{where}: changes {' '.join(identity(change))}, of which there are {len(same)}")
    return same[0]


def identity(it: dict) -> tuple:
    return it["apiVersion"], it["kind"], it["metadata"]["name"]


def merge(into: dict, change: dict) -> None:
    for name, value in change.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        elif isinstance(value, list) and name in MERGE_KEYS and isinstance(into.get(name), list):
            key, elements = MERGE_KEYS[name], into[name]
            for element in value:
                same = [it for it in elements if it[key] == element[key]]
                if same:
                    merge(same[0], element)
                else:
                    elements.append(copy.deepcopy(element))
        else:
            into[name] = copy.deepcopy(value)


def rename(objects: list, image: dict) -> int:
    containers = [it for pod in map(pod_of, objects) if pod for it in pod["spec"]["containers"] if it["image"] == image["name"]]
    for container in containers:
        container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    return len(containers)


# --- What is built ---


def pod_of(it: dict) -> dict | None:
    """The pod that an object makes, as a template."""
    spec = it.get("spec", {})
    match it["kind"]:
        case "Deployment":
            return spec["template"]
        case "CronJob":
            return spec["jobTemplate"]["spec"]["template"]
        case "SpinApp":
            name = it["metadata"]["name"]
            labels = {"core.spinkube.dev/app-name": name, **spec.get("podLabels", {})}
            container = {"name": name, "image": spec["image"], "ports": [SPIN_PORT], "volumeMounts": spec.get("volumeMounts", [])}
            for check, probe in spec.get("checks", {}).items():
                path = probe.get("httpGet", {}).get("path")
                container[f"{check}Probe"] = {"httpGet": {"path": path, "port": SPIN_PORT["name"]}}
            variables = spec.get("variables", [])
            container["env"] = [{**it, "name": f"SPIN_VARIABLE_{it['name'].upper()}"} for it in variables]
            return {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": spec.get("volumes", [])}}
    return None


def check_schema(it: dict) -> list[str]:
    if it["kind"] == "SpinApp":
        contents = utils.schema_contents(f"kubernetes-json-schema/v{newest()}-local-strict/_definitions.json", VERSIONS[-1])
        registry = utils.Resource.from_contents(contents) @ utils.Registry()
        checker = jsonschema.Draft202012Validator(SPIN_APP, registry=registry)
        return [f"{said.json_path}: {said.message}" for said in checker.iter_errors(it)]
    for version in VERSIONS:
        try:
            utils.validate(it, version, strict=True)
        except utils.ValidationError as said:
            return [f"Kubernetes {version}: {'.'.join(map(str, said.path))}: {said.message}"]
        except utils.SchemaNotFoundError as said:
            return [said.message]
    return []


@functools.cache
def newest() -> str:
    return max((it for it in utils.all_versions() if utils.major_minor(it) == VERSIONS[-1]))


def selects(selector: dict, labels: dict) -> bool:
    wanted = selector.get("matchLabels", selector)
    return bool(wanted) and wanted.items() <= labels.items()


def check(objects: list, wanted: dict) -> list[str]:
    """Rules of our own. `wanted` has what is so elsewhere: settings by manifest, variables of the environment, routes, the image's
    port and user, the secret's name, and how long the host takes to leave."""
    defects = []
    of_kind = functools.partial(lambda kind: {it["metadata"]["name"]: it for it in objects if it["kind"] == kind})
    pods = [(it, pod) for it in objects if (pod := pod_of(it))]

    def wrong(it: dict, text: str) -> None:
        defects.append(f"{it['kind']} {it['metadata']['name']}: {text}")

    identities = [identity(it) for it in objects]
    for it in objects:
        if identities.count(identity(it)) > 1:
            wrong(it, "there is another one of this name")
        kind, spec = it["kind"], it.get("spec", {})
        selected = [pod for _, pod in pods if selects(selector_of(it) or {}, pod["metadata"]["labels"])]
        if selector_of(it) is not None and not selected:
            wrong(it, "its selector selects no pod")
        ports = [port for pod in selected for container in pod["spec"]["containers"] for port in container.get("ports", [])]
        known = {value for port in ports for value in (port.get("name"), port["containerPort"])}
        asked = [port["targetPort"] for port in spec.get("ports", [])] if kind == "Service" else []
        if kind == "NetworkPolicy":
            asked = [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
            if "Egress" in spec["policyTypes"] and not spec.get("egress"):
                wrong(it, "it lets nothing out")
        for port in asked:
            if port not in known:
                wrong(it, f"no container listens on the port {port}")
        if kind == "Deployment":
            if not selects(spec["selector"], spec["template"]["metadata"]["labels"]):
                wrong(it, "its selector does not select its own pods")
            keeps = [volume for volume in spec["template"]["spec"]["volumes"] if "persistentVolumeClaim" in volume]
            if keeps and (spec.get("replicas") != 1 or spec.get("strategy", {}).get("type") != "Recreate"):
                wrong(it, "a volume that is one pod's needs one replica and the strategy Recreate")
        if kind == "CronJob" and spec["concurrencyPolicy"] != "Forbid":
            wrong(it, "its concurrencyPolicy has to be Forbid")
    for it, pod in pods:
        for text in check_pod(it, pod, of_kind, wanted):
            wrong(it, text)
    return defects


def selector_of(it: dict) -> dict | None:
    field = {"Service": "selector", "PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}.get(it["kind"])
    return it["spec"][field] if field else None


def check_pod(it: dict, pod: dict, of_kind, wanted: dict):
    spec = pod["spec"]
    account = spec.get("serviceAccountName")
    if account and account not in of_kind("ServiceAccount"):
        yield f"there is no service account {account}"
    if it["kind"] == "Deployment" and spec.get("terminationGracePeriodSeconds", 30) <= wanted["leaving_seconds"]:
        yield f"terminationGracePeriodSeconds has to be above the {wanted['leaving_seconds']} s that the host takes to leave"
    for constraint in spec.get("topologySpreadConstraints", []):
        if not selects(constraint["labelSelector"], pod["metadata"]["labels"]):
            yield "a topologySpreadConstraint does not select its own pods"
    if it["kind"] != "SpinApp":
        yield from check_rights(spec, wanted["user"])
    files, mounted = {}, set()
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            mounted.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"there is no volume {mount['name']} to mount"
            else:
                files[PurePosixPath(mount["mountPath"])] = volumes[mount["name"]]
        yield from check_container(container, files, of_kind, wanted)
    for name, volume in volumes.items():
        if name not in mounted:
            yield f"nobody mounts the volume {name}"
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and claim not in of_kind("PersistentVolumeClaim"):
            yield f"there is no volume claim {claim}"
        if (volume.get("secret") or {}).get("secretName") not in (None, wanted["secret"]):
            yield f"the secret is called {wanted['secret']}"


def check_rights(spec: dict, user: int):
    """What the profile `restricted` asks for, and a root that is read-only
    (https://kubernetes.io/docs/concepts/security/pod-security-standards/)."""
    own = spec.get("securityContext", {})
    if not own.get("runAsNonRoot") or {own.get(it) for it in ("runAsUser", "runAsGroup", "fsGroup")} != {user}:
        yield f"it has to run as the user and group {user}"
    if own.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "it has to have the seccompProfile RuntimeDefault"
    if spec.get("automountServiceAccountToken") is not False:
        yield "it asks nothing of Kubernetes: automountServiceAccountToken has to be false"
    for container in spec["containers"]:
        least = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        if container.get("securityContext") != least:
            yield f"the securityContext of {container['name']} has to be {least}"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"{container['name']} has no limit of memory"


def check_container(container: dict, files: dict, of_kind, wanted: dict):
    ports = {value for port in container.get("ports", []) for value in (port.get("name"), port["containerPort"])}
    for name, probe in container.items():
        if not name.endswith("Probe"):
            continue
        if probe["httpGet"]["port"] not in ports:
            yield f"{name} asks at the port {probe['httpGet']['port']}, which the container has not"
        if probe["httpGet"]["path"] not in wanted["routes"]:
            yield f"{name} asks for {probe['httpGet']['path']}, which is no route"
    is_spin = SPIN_PORT in container.get("ports", [])
    if ports and not is_spin and wanted["port"] not in ports:
        yield f"the image listens on the port {wanted['port']}"
    words = container.get("args", [])
    manifests = [word.removeprefix("--from=") for word in words if word.startswith("--from=")]
    manifest = "SpinApp" if is_spin else (manifests or ["spin.toml"])[-1]
    settings = wanted["settings"].get(manifest)
    if settings is None:
        yield f"the image has no {manifest}"
        return
    set_here = [variable["name"] for variable in container.get("env", [])]
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        if name not in of_kind("ConfigMap"):
            yield f"there is no config map {name}"
        else:
            set_here += of_kind("ConfigMap")[name]["data"]
    for variable in container.get("env", []):
        key = variable.get("valueFrom", {}).get("secretKeyRef")
        if key and f"SPIN_VARIABLE_{key['key'].upper()}" != variable["name"]:
            yield f"{variable['name']} is of the key {key['key']}"
        if key and key["name"] != wanted["secret"]:
            yield f"the secret is called {wanted['secret']}"
    for name in set_here:
        setting = name.removeprefix("SPIN_VARIABLE_").lower()
        if setting not in settings if name.startswith("SPIN_VARIABLE_") else name not in wanted["environment"]:
            yield f"{name} sets nothing"
    for word in words:
        if not word.startswith("--variable-file="):
            continue
        _, setting, path = word.split("=", 2)
        if setting not in settings:
            yield f"{word}: there is no such setting"
        volume = files.get(PurePosixPath(path).parent)
        if volume is None or PurePosixPath(path).name not in names_in(volume, setting):
            yield f"{word}: no volume has that file"


def names_in(volume: dict, setting: str) -> list[str]:
    """The files of a volume. A secret as a whole has a file for each key, and its keys are called as settings are."""
    if "projected" in volume:
        return [it["serviceAccountToken"]["path"] for it in volume["projected"]["sources"]]
    items = volume.get("secret", {}).get("items")
    return [it["path"] for it in items] if items else [setting]


def main() -> int:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    wanted = json.load(sys.stdin)
    utils.schema_contents = functools.cache(utils.schema_contents)
    builder, built, defects = Builder(), {}, []
    for name in names:
        try:
            built[name] = builder.build(folder / name)
        except Defect as defect:
            defects.append(str(defect))
            continue
        found_here = [f"{it['kind']} {it['metadata']['name']}: {text}" for it in built[name] for text in check_schema(it)]
        # Rules are about what has its form.
        defects += [f"{name}: {text}" for text in found_here or check(built[name], wanted)]
    if not defects:
        files = (it for it in folder.rglob("*") if it.is_file() and it.name != "README.md")
        defects += [f"{it}: nobody uses it" for it in files if it.resolve() not in builder.used]
    for defect in defects:
        print(defect, file=sys.stderr)
    print(json.dumps(built))
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
