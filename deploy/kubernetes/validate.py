"""Checks the manifests, see `validate`: against the schemas of Kubernetes, and what no schema says: that names, labels,
ports and files which one object names are there in another."""

import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parent
VERSION = "1.30"
# What the Prometheus Operator adds, with the keys that are used here: no schema of Kubernetes knows it.
OPERATOR = {
    "ServiceMonitor": {"selector": {"matchLabels": dict}, "endpoints": [{"port": str, "interval": str}]},
    "PrometheusRule": {
        "groups": [
            {"name": str, "rules": [{"alert": str, "expr": str, "for?": str, "labels": dict, "annotations": dict}]}
        ]
    },
}
KUSTOMIZE = {
    "apiVersion": str, "kind": str, "namespace?": str, "resources": list, "labels?": list, "images?": list,
    "configMapGenerator?": list,
}  # fmt: skip


def read():
    """Every file, by its path: what is checked, and what mistakes are planted in."""
    files = [*HERE.glob("*/*"), DEPLOY / "monitoring/alerts.yaml", DEPLOY / "Dockerfile"]
    return {str(path.relative_to(DEPLOY)): path.read_text() for path in files}


def shape(value, wanted, where, wrong):
    """Compares a value with a pattern of types; a key that ends in `?` may be missing."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return wrong.append(f"{where}: is no map")
        optional = {key.rstrip("?"): pattern for key, pattern in wanted.items()}
        for key in value.keys() - optional.keys():
            wrong.append(f"{where}.{key}: is not known")
        for key, pattern in wanted.items():
            if key in value or key.rstrip("?") in value:
                shape(value[key.rstrip("?")], pattern, f"{where}.{key.rstrip('?')}", wrong)
            elif not key.endswith("?"):
                wrong.append(f"{where}.{key}: is missing")
    elif isinstance(wanted, list):
        if not isinstance(value, list) or not value:
            return wrong.append(f"{where}: is no list, or empty")
        for index, item in enumerate(value):
            shape(item, wanted[0], f"{where}[{index}]", wrong)
    elif not isinstance(value, wanted):
        wrong.append(f"{where}: {value!r} is no {wanted.__name__}")


def kustomization(files, folder, wrong):
    """The objects of a directory, and the names of the ConfigMaps that are generated."""
    build = yaml.safe_load(files[f"kubernetes/{folder}/kustomization.yaml"])
    shape(build, KUSTOMIZE, f"{folder}/kustomization.yaml", wrong)
    objects, used, maps = [], {"kustomization.yaml"}, {}
    for name in build.get("resources", []):
        used.add(name)
        if f"kubernetes/{folder}/{name}" not in files:
            wrong.append(f"{folder}: {name} is not there")
            continue
        objects += [(name, one) for one in yaml.safe_load_all(files[f"kubernetes/{folder}/{name}"]) if one]
    for generated in build.get("configMapGenerator", []):
        maps[generated["name"]] = set(generated["files"])
        for name in generated["files"]:
            used.add(name)
            if f"kubernetes/{folder}/{name}" not in files:
                wrong.append(f"{folder}: {name} is not there")
    there = {path.rsplit("/", 1)[1] for path in files if path.startswith(f"kubernetes/{folder}/")}
    wrong += [f"{folder}: {name} is not used" for name in there - used]
    images = {image["name"] for image in build.get("images", [])}
    return objects, maps, images


def schemas(objects, wrong):
    """Each object against the schema of its kind; unknown keys are mistakes."""
    for name, one in objects:
        kind = one.get("kind")
        where = f"{name}: {kind} {one.get('metadata', {}).get('name')}"
        if kind in OPERATOR:
            if one.get("apiVersion") != "monitoring.coreos.com/v1":
                wrong.append(f"{where}: apiVersion {one.get('apiVersion')}")
            shape(one.get("spec"), OPERATOR[kind], where, wrong)
            continue
        try:
            kubernetes_validate.validate(one, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{where}: {'.'.join(map(str, error.path))}: {error.message}")
        except Exception as error:  # A kind or version that is not known.
            wrong.append(f"{where}: {error!r}")


def pods(objects):
    for name, one in objects:
        template = one.get("spec", {}).get("template")
        if template:
            yield f"{name}: {one['kind']} {one['metadata']['name']}", one, template


def fits(selector, labels):
    return selector.items() <= labels.items()


def references(objects, maps, images, wrong):
    """What one object names must be there in another."""
    names = {(one["kind"], one["metadata"]["name"]) for _, one in objects}
    templates = [template for _, _, template in pods(objects)]
    labels = [template["metadata"]["labels"] for template in templates]
    for where, one, template in pods(objects):
        spec = template["spec"]
        account = spec.get("serviceAccountName")
        if ("ServiceAccount", account) not in names:
            wrong.append(f"{where}: there is no ServiceAccount {account}")
        if spec.get("automountServiceAccountToken") is not False:
            wrong.append(f"{where}: gets a token of the API")
        if not fits(one["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]):
            wrong.append(f"{where}: its selector does not select its pods")
        service = one["spec"].get("serviceName")
        if service and ("Service", service) not in names:
            wrong.append(f"{where}: there is no Service {service}")
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"]: claim for claim in one["spec"].get("volumeClaimTemplates", [])}
        for volume in volumes.values():
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                wrong.append(f"{where}: there is no ConfigMap {volume['configMap']['name']}")
        for container in spec["containers"] + spec.get("initContainers", []):
            if container["image"] not in images:
                wrong.append(f"{where}: the image {container['image']} is not replaced")
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            wrong += [f"{where}: there is no volume {name}" for name in mounts.values() if name not in volumes]
            wrong += [f"{where}: {path} is not there" for path in missing(container, mounts, volumes, maps)]
        if spec.get("hostNetwork"):
            for container in spec["containers"]:
                for port in container["ports"]:
                    if port.get("hostPort", port["containerPort"]) != port["containerPort"]:
                        wrong.append(f"{where}: port {port['name']} differs on the host")
    for name, one in objects:
        where = f"{name}: {one['kind']} {one['metadata']['name']}"
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            selected = [template for template, have in zip(templates, labels) if fits(spec["selector"], have)]
            ports = {port["name"] for template in selected for c in template["spec"]["containers"] for port in c["ports"]}
            wrong += [f"{where}: no pod has port {p['targetPort']}" for p in spec["ports"] if p["targetPort"] not in ports]
        elif one["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = (spec.get("selector") or spec.get("podSelector") or {}).get("matchLabels", {})
            if not any(fits(selector, have) for have in labels):
                wrong.append(f"{where}: selects no pod")
        elif one["kind"] == "ServiceMonitor":
            services = [
                other["spec"]["ports"] for _, other in objects
                if other["kind"] == "Service" and fits(spec["selector"]["matchLabels"], other["metadata"].get("labels", {}))
            ]  # fmt: skip
            ports = {port["name"] for found in services for port in found}
            wrong += [f"{where}: no service has port {e['port']}" for e in spec["endpoints"] if e["port"] not in ports]


def missing(container, mounts, volumes, maps):
    """Paths below a mounted ConfigMap that the container's commands and environment name, and that are not in it."""
    words = container.get("command", []) + container.get("args", [])
    words += [env["value"] for env in container.get("env", []) if "value" in env]
    for hook in ("startupProbe", "readinessProbe", "livenessProbe"):
        words += container.get(hook, {}).get("exec", {}).get("command", [])
    words += container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    for word in words:
        folder, _, file = word.rpartition("/")
        volume = volumes.get(mounts.get(folder), {})
        if "configMap" in volume and file not in maps.get(volume["configMap"]["name"], set()):
            yield word


def dockerfile(text, wrong):
    """The parts of the Dockerfile: pinned bases, and that what is copied was built."""
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.M)
    if len(stages) < 2:
        wrong.append("Dockerfile: one stage alone")
    for base, _ in stages:
        tag = base.partition(":")[2]
        if not re.search(r"\d+\.\d+|\d{8}", tag):
            wrong.append(f"Dockerfile: {base} is not pinned")
    known = {name for _, name in stages if name}
    built = set(re.findall(r"-p (\S+)", text))
    for stage, paths in re.findall(r"^COPY --from=(\S+) (.*)$", text, re.M):
        if stage not in known:
            wrong.append(f"Dockerfile: there is no stage {stage}")
        for path in paths.split()[:-1]:
            if path.startswith("/out/") and path.removeprefix("/out/") not in built:
                wrong.append(f"Dockerfile: {path} is not built")
    for program in ("node-agent", "coordinator", "migrate"):
        if f"/out/{program} " not in text:
            wrong.append(f"Dockerfile: {program} is not in the image")
    toolchain = re.search(r'channel = "(.*)"', (DEPLOY.parent / "rust-toolchain.toml").read_text())[1]
    if not stages or not stages[0][0].startswith(f"rust:{toolchain}-"):
        wrong.append(f"Dockerfile: the compiler is not {toolchain}, as rust-toolchain.toml says")
    for line in text.splitlines():
        if not re.match(r"^(#.*|(FROM|COPY|RUN|WORKDIR|ENV|USER|LABEL) .*|\s+.*|)$", line):
            wrong.append(f"Dockerfile: {line!r} is no instruction that is used here")


def check(files):
    """Everything that is wrong."""
    wrong = []
    base, maps, images = kustomization(files, "base", wrong)
    operator, _, _ = kustomization(files, "monitoring", wrong)
    objects = base + operator
    schemas(objects, wrong)
    if not wrong:
        references(objects, maps, images, wrong)
    rules = [one["spec"] for _, one in operator if one.get("kind") == "PrometheusRule"]
    if rules != [yaml.safe_load(files["monitoring/alerts.yaml"])]:
        wrong.append("rules.yaml: is not what monitoring/alerts.yaml says")
    dockerfile(files["Dockerfile"], wrong)
    return wrong


# A mistake each: the file, what stands there, what is put in its place, and a word of what must be said.
MISTAKES = [
    ("kubernetes/base/coordinator.yaml", "replicas: 1", "replica: 1", "replica"),
    ("kubernetes/base/coordinator.yaml", "containerPort: 7443", 'containerPort: "7443"', "7443"),
    ("kubernetes/base/coordinator.yaml", "serviceAccountName: coordinator", "serviceAccountName: other", "other"),
    ("kubernetes/base/coordinator.yaml", "targetPort: metrics", "targetPort: metric", "metric"),
    ("kubernetes/base/coordinator.yaml", "config/coordinator.toml", "config/coordinate.toml", "coordinate.toml"),
    ("kubernetes/base/coordinator.yaml", "maxUnavailable: 1", "maxUnavailabel: 1", "maxUnavailabel"),
    ("kubernetes/base/node-agent.yaml", "hostPID: true", "hostPid: true", "hostPid"),
    ("kubernetes/base/node-agent.yaml", "automountServiceAccountToken: false\n      node", "node", "token"),
    ("kubernetes/base/node-agent.yaml", "[/scripts/idle.sh]", "[/scripts/idel.sh]", "idel.sh"),
    ("kubernetes/base/node-agent.yaml", "matchLabels:\n      app", "matchLabels:\n      app2", "selector"),
    ("kubernetes/base/network-policy.yaml", "name: coordinator\n  policy", "name: coordination\n  policy", "no pod"),
    ("kubernetes/base/kustomization.yaml", "  - namespace.yaml\n", "", "namespace.yaml is not used"),
    ("kubernetes/monitoring/monitors.yaml", "port: metrics", "port: metric", "metric"),
    ("kubernetes/monitoring/monitors.yaml", "endpoints:", "endpoint:", "endpoint"),
    ("kubernetes/monitoring/rules.yaml", "> 0", "> 1", "alerts.yaml"),
    ("kubernetes/monitoring/rules.yaml", "alert:", "alart:", "alart"),
    ("Dockerfile", "FROM debian:", "FROM debian:stable AS x\n# ", "pinned"),
    ("Dockerfile", "-p coordinator", "", "coordinator"),
]


def main():
    files = read()
    wrong = check(files)
    for path, old, new, word in MISTAKES:
        if old not in files[path]:
            wrong.append(f"self test: {old!r} is not in {path}")
            continue
        found = check({**files, path: files[path].replace(old, new, 1)})
        if not any(word in line for line in found):
            wrong.append(f"self test: {new!r} in {path} is not found: {found}")
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"manifests for Kubernetes {VERSION}: {len(wrong)} mistakes; {len(MISTAKES)} planted ones were looked for")
    return 1 if wrong else 0


sys.exit(main())
