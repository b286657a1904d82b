"""What the files in deploy/ promise is checked against the code, Ray's schema and each other."""

import ast
import importlib
import inspect
import json
import re
import tomllib
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.settings import Settings
from service.telemetry import Telemetry

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def manifest() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def of_kind(manifest: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [d for d in manifest if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


@pytest.fixture(scope="module")
def cluster(manifest: list[dict[str, Any]]) -> dict[str, Any]:
    return of_kind(manifest, "RayService", "tiller")["spec"]["rayClusterConfig"]


@pytest.fixture(scope="module")
def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


@pytest.fixture
def settings(manifest: list[dict[str, Any]], tmp_path: Path) -> Settings:
    file = tmp_path / "serve.toml"
    [config] = [d for d in manifest if d["kind"] == "ConfigMap"]
    file.write_text(config["data"]["serve.toml"])
    return Settings.read({"TILLER_HOST": "0.0.0.0"}, file)  # noqa: S104 - as the image sets it


@pytest.fixture(scope="module")
def serving(manifest: list[dict[str, Any]]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's import warns of its own pydantic usage
        from ray.serve.schema import ServeDeploySchema

        told = yaml.safe_load(of_kind(manifest, "RayService", "tiller")["spec"]["serveConfigV2"])
        return ServeDeploySchema.model_validate(told)


@pytest.fixture(scope="module")
def launcher(serving: Any) -> Any:
    """The module that the manifest's builder comes from."""
    module, _, _ = serving.applications[0].import_path.partition(":")
    return importlib.import_module(module)


# The settings that are shipped


def test_the_shipped_settings_are_what_the_code_reads_and_state_its_defaults():
    shipped = Settings.read({}, DEPLOY / "serve.toml")
    assert shipped == Settings.read({})


# Kubernetes


def test_the_cluster_asks_for_keys_and_keeps_nothing_on_a_single_pod(settings: Settings):
    assert not settings.keyless
    assert settings.index_url.startswith("postgresql+psycopg://")
    assert settings.blobs_url.startswith("s3://")


def test_the_manifest_holds_no_secret(manifest: list[dict[str, Any]], settings: Settings):
    assert not [d for d in manifest if d["kind"] == "Secret"]
    assert re.fullmatch(r"postgresql\+psycopg://\w+@[\w.-]+/\w+", settings.index_url)
    named = [v for v in _values_of(manifest, "env") for v in v if _sounds_secret(v["name"])]
    assert named
    assert all("secretKeyRef" in v["valueFrom"] for v in named)


def _sounds_secret(name: str) -> bool:
    return any(part in name for part in ("PASSWORD", "SECRET", "TOKEN", "KEY"))


def _values_of(node: Any, key: str) -> list[Any]:
    if isinstance(node, list):
        return [found for item in node for found in _values_of(item, key)]
    if not isinstance(node, dict):
        return []
    own = [node[key]] if key in node else []
    return own + [found for item in node.values() for found in _values_of(item, key)]


def test_every_secret_key_is_one_that_the_readme_tells_to_fill(manifest: list[dict[str, Any]]):
    told = set(re.findall(r"--from-literal=([\w-]+)=", (DEPLOY / "README.md").read_text()))
    used = {(ref["name"], ref["key"]) for ref in _values_of(manifest, "secretKeyRef")}
    assert used == {("tiller", key) for key in told}


def test_ray_accepts_the_serve_config(serving: Any):
    [application] = serving.applications
    assert application.route_prefix == "/"
    assert serving.http_options.port == 8000


def test_ray_can_build_the_application_from_what_the_manifest_tells(
    serving: Any, launcher: Any, tmp_path: Path
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built

        [application] = serving.applications
        builder = getattr(launcher, application.import_path.partition(":")[2])
        [argument] = application.args
        file = tmp_path / "serve.toml"
        file.write_text((DEPLOY / "serve.toml").read_text())
        assert built(builder, {argument: str(file)}) is not None


def test_the_pods_have_what_the_launcher_gives_ray_s_processes(
    launcher: Any, pods: list[dict[str, Any]], settings: Settings
):
    wanted = launcher.environment(settings)[0] | dict.fromkeys(launcher._SPEEDY, "1")
    wanted.pop("RAY_AUTH_MODE")  # the operator's, see authOptions
    image = dict(re.findall(r"(\w+)=(\S+)", dict(instructions())["ENV"]))
    for env in _values_of(pods, "env"):
        assert wanted.items() <= (image | {v["name"]: v.get("value") for v in env}).items()


def test_ray_lets_a_request_take_as_long_as_the_settings_say(serving: Any, settings: Settings):
    assert serving.http_options.request_timeout_s == settings.server.request_seconds


def test_the_settings_lie_where_the_application_and_every_pod_look(
    manifest: list[dict[str, Any]], pods: list[dict[str, Any]], serving: Any
):
    [config] = [d for d in manifest if d["kind"] == "ConfigMap"]
    told = Path(serving.applications[0].args["config"])
    for pod in pods:
        [volume] = [v for v in pod["spec"]["volumes"] if "configMap" in v]
        [container] = pod["spec"]["containers"]
        mounts = {m["name"]: Path(m["mountPath"]) for m in container["volumeMounts"]}
        assert volume["configMap"]["name"] == config["metadata"]["name"]
        assert mounts[volume["name"]] / next(iter(config["data"])) == told


def test_every_volume_that_is_claimed_or_mounted_exists(
    manifest: list[dict[str, Any]], pods: list[dict[str, Any]]
):
    claims = {d["metadata"]["name"] for d in manifest if d["kind"] == "PersistentVolumeClaim"}
    for pod in pods:
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        claimed = _values_of(pod, "claimName")
        mounted = {m["name"] for m in _values_of(pod["spec"]["containers"], "volumeMounts")[0]}
        assert set(claimed) <= claims
        assert mounted == set(volumes)


def test_the_declared_ray_is_the_one_in_the_image(cluster: dict[str, Any]):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]


def test_every_switch_for_ray_serve_is_one_that_ray_reads(pods: list[dict[str, Any]]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve._private import constants

    switches = {v["name"] for env in _values_of(pods, "env") for v in env}
    ours = {name for name in switches if name.startswith("RAY_SERVE_")}
    assert ours
    read = inspect.getsource(constants)
    assert all(f'"{name}"' in read for name in ours)


def test_neither_an_update_nor_a_drain_is_shorter_than_a_request_may_take(
    manifest: list[dict[str, Any]], pods: list[dict[str, Any]], settings: Settings
):
    service = of_kind(manifest, "RayService", "tiller")["spec"]
    assert service["rayClusterDeletionDelaySeconds"] > settings.server.request_seconds
    for pod in pods:
        assert pod["spec"]["terminationGracePeriodSeconds"] > settings.server.drain_seconds


def test_the_workers_have_room_for_what_is_hosted(cluster: dict[str, Any], settings: Settings):
    [group] = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gibibytes = int(limits["memory"].removesuffix("Gi")) * group["replicas"]
    cpus = int(limits["cpu"]) * group["replicas"]
    hosted = settings.models
    assert cpus >= sum(m.cpus * m.replicas for m in hosted) + settings.server.gateways
    # Ray's object store may take three tenths of a pod's memory.
    assert 0.7 * gibibytes * 2**30 >= sum(m.memory_bytes * m.replicas for m in hosted)


def test_ray_is_behind_a_token_and_a_policy_that_covers_every_pod(
    manifest: list[dict[str, Any]], cluster: dict[str, Any], pods: list[dict[str, Any]]
):
    assert cluster["authOptions"] == {"mode": "token"}
    chosen = of_kind(manifest, "NetworkPolicy", "tiller")["spec"]["podSelector"]["matchLabels"]
    assert chosen
    for pod in pods:
        assert chosen.items() <= pod["metadata"]["labels"].items()


def test_only_the_service_and_its_numbers_are_open_to_other_pods(manifest: list[dict[str, Any]]):
    policy = of_kind(manifest, "NetworkPolicy", "tiller")["spec"]
    own = {"podSelector": policy["podSelector"]}
    for rule in policy["ingress"]:
        if rule["from"] == [own]:
            continue
        operator = "kuberay-operator" in json.dumps(rule["from"])
        allowed = {8000, 8265} if operator else {8000, 8080}
        assert {port["port"] for port in rule["ports"]} <= allowed
        assert all(peer["namespaceSelector"] or operator for peer in rule["from"])


def test_the_two_policies_name_pods_that_do_not_overlap(manifest: list[dict[str, Any]]):
    redis = of_kind(manifest, "StatefulSet", "redis")["spec"]["template"]["metadata"]["labels"]
    service = of_kind(manifest, "Service", "redis")["spec"]["selector"]
    of_redis = of_kind(manifest, "NetworkPolicy", "redis")["spec"]["podSelector"]["matchLabels"]
    of_ray = of_kind(manifest, "NetworkPolicy", "tiller")["spec"]["podSelector"]["matchLabels"]
    assert redis == service == of_redis != of_ray


def test_no_pod_runs_as_root_or_may_become_root(manifest: list[dict[str, Any]]):
    specs = [s for s in _values_of(manifest, "spec") if "containers" in s]
    assert len(specs) == 3  # head, workers, Redis
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]


# The image


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = plain.replace("\\\n", " ").splitlines()
    return [
        (first, rest) for first, _, rest in (x.strip().partition(" ") for x in lines if x.strip())
    ]


def test_every_package_and_file_that_the_image_needs_travels_into_it():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    travel = {line[1:] for line in ignored if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.removesuffix("*") for pattern in packages} <= travel
    copied = {name for verb, rest in instructions() if verb == "COPY" for name in rest.split()[:-1]}
    needed = copied - {"."} | {project["project"]["readme"], "deploy/serve.toml"}
    assert needed <= travel
    assert all((ROOT / name).exists() for name in needed)


def test_nothing_else_travels_into_the_image():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    secrets = ["service/.env", "service/__pycache__", "miniature/weights/model.part"]
    for path in secrets:
        assert any(fnmatch(path, rule.replace("**/", "*")) for rule in rules[1:])


def test_the_image_is_not_root_and_its_python_is_one_that_the_project_supports():
    told = dict(instructions())
    assert told["USER"] == "1000"
    version = re.match(r"python:3\.(\d+)-", told["FROM"])
    assert version is not None
    assert int(version[1]) >= 11


def test_the_image_serves_with_the_project_s_own_command_and_checks_the_right_port():
    told = dict(instructions())
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [command] = json.loads(told["ENTRYPOINT"])
    assert command in scripts
    port = Settings().server.port
    assert told["EXPOSE"] == str(port)
    assert f":{port}/livez" in told["HEALTHCHECK"]


# The dashboard


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return json.loads((DEPLOY / "dashboards/grafana.json").read_text())


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Every series that `/metrics` shows, with its labels."""
    telemetry = Telemetry()
    telemetry.requests.labels("GET", "/livez", "200").inc()
    telemetry.seconds.labels("GET", "/livez").observe(0.1)
    telemetry.images.labels("toy", "true").inc()
    telemetry.tokens.labels("toy", "false", "written").inc()
    telemetry.rows.labels("toy", "active").set(1)
    families = text_string_to_metric_families(telemetry.text().decode())
    return {s.name: set(s.labels) for family in families for s in family.samples}


def queries(board: dict[str, Any]) -> list[str]:
    asked = [t["expr"] for p in board["panels"] for t in p.get("targets", [])]
    return asked + [v["definition"] for v in board["templating"]["list"] if "definition" in v]


def test_every_query_asks_for_a_series_that_exists_by_labels_that_it_has(
    board: dict[str, Any], exported: dict[str, set[str]]
):
    for query in queries(board):
        series = re.findall(r"\btiller_\w+", query)
        assert series
        for name in series:
            assert name in exported, query
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
        for group in re.findall(r"by \(([^)]*)\)", query):
            labels |= {label.strip() for label in group.split(",")}
        assert labels <= set().union(*(exported[name] for name in series)), query


def test_every_legend_names_a_label_that_its_query_keeps(board: dict[str, Any]):
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            groups = re.findall(r"by \(([^)]*)\)", target["expr"])
            if groups:
                assert shown <= {label.strip() for label in groups[-1].split(",")}


def test_every_metric_is_on_the_dashboard_and_in_the_readme(board: dict[str, Any]):
    readme = (DEPLOY / "README.md").read_text()
    asked = " ".join(queries(board))
    for family in text_string_to_metric_families(Telemetry().text().decode()):
        assert family.name in asked
        assert f"`{family.name}" in readme


def test_what_the_dashboard_asks_of_an_engine_is_told(board: dict[str, Any]):
    told = _keys_told("engines/diffusion.py") | _keys_told("service/hosting.py")
    asked = re.findall(r'what(?:=~|!~|=)"([^"]+)"', " ".join(queries(board)))
    assert {word for words in asked for word in words.split("|")} <= told


def _keys_told(path: str) -> set[str]:
    """The keys of the dictionaries that functions named `load` return."""
    tree = ast.parse((ROOT / path).read_text())
    loads = [
        f
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) and f.name == "load"
    ]
    shown = [d for f in loads for d in ast.walk(f) if isinstance(d, ast.Dict)]
    return {str(k.value) for d in shown for k in d.keys if isinstance(k, ast.Constant)}


def test_panels_have_their_own_numbers_and_do_not_overlap(board: dict[str, Any]):
    panels = board["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert max(columns) < 24
        assert not cells & taken
        taken |= cells


def test_every_panel_asks_the_chosen_data_source(board: dict[str, Any]):
    [source] = [v["name"] for v in board["templating"]["list"] if v["type"] == "datasource"]
    asked = [p for p in board["panels"] if p["type"] != "row"]
    assert asked
    for part in [*asked, *(t for p in asked for t in p["targets"])]:
        assert part["datasource"]["uid"] == f"${{{source}}}"


# The page about it


def test_the_readme_names_every_file_of_the_folder():
    readme = (DEPLOY / "README.md").read_text()
    files = [p.relative_to(DEPLOY) for p in DEPLOY.rglob("*") if p.is_file()]
    for file in files:
        assert file.name == "README.md" or f"`{file}`" in readme
