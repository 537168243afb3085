"""The shipped manifests, as a real API server and its Pod Security admission see them."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
import yaml

from extender.settings import load_settings
from tests.controlplane import workload
from tests.controlplane.api import ApiError, Json
from tests.controlplane.cluster import ControlPlane
from tests.e2e.world import DEPLOY

controlplane = pytest.mark.controlplane

KUSTOMIZATIONS = [DEPLOY, DEPLOY / "tls"]


def built(plane: ControlPlane, folder: Path) -> list[Json]:
    """The objects of a kustomization."""
    return list(yaml.safe_load_all(plane.kubectl("kustomize", str(folder))))


def template(objects: list[Json]) -> Json:
    """The pod template of the one workload."""
    (found,) = [o for o in objects if o["kind"] in ("DaemonSet", "Deployment")]
    spec: Json = found["spec"]["template"]["spec"]
    return spec


@controlplane
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_the_api_server_accepts_a_kustomization(control_plane: ControlPlane, folder: Path) -> None:
    said = control_plane.kubectl(
        "apply", "--server-side", "--dry-run=server", "--force-conflicts", "-k", str(folder)
    )
    assert said.count("serverside-applied") == len(built(control_plane, folder))


@controlplane
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_every_file_of_the_folder_is_used(control_plane: ControlPlane, folder: Path) -> None:
    kinds = {(o["kind"], o["metadata"]["name"]) for o in built(control_plane, folder)}
    for path in folder.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            is_object = "metadata" in document and document["kind"] != "Kustomization"
            if is_object:
                assert (document["kind"], document["metadata"]["name"]) in kinds, path.name


@controlplane
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_the_pod_is_restricted(control_plane: ControlPlane, folder: Path) -> None:
    """Pod Security's strictest profile takes it, but for the host's network where it uses that."""
    admin, namespace = control_plane.admin, f"test-{secrets.token_hex(4)}"
    workload.create_namespace(
        admin, namespace, {"pod-security.kubernetes.io/enforce": "restricted"}
    )
    spec = template(built(control_plane, folder))
    del spec["priorityClassName"]  # belongs to kube-system
    spec["serviceAccountName"] = "default"
    pod = {"metadata": {"name": "extender", "namespace": namespace}, "spec": spec}
    if spec.get("hostNetwork"):
        with pytest.raises(ApiError, match="host") as error:
            admin.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
        assert "seccomp" not in error.value.message
        _leave_the_host(spec)
    admin.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
    del spec["containers"][0]["securityContext"]["capabilities"]
    with pytest.raises(ApiError, match="capabilities"):
        admin.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)


def _leave_the_host(spec: Json) -> None:
    del spec["hostNetwork"], spec["containers"][0]["ports"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        del spec["containers"][0][kind]["httpGet"]["host"]


@controlplane
def test_offline_pods_preempt_nobody(control_plane: ControlPlane) -> None:
    (offline,) = [o for o in built(control_plane, DEPLOY) if o["kind"] == "PriorityClass"]
    assert offline["preemptionPolicy"] == "Never"
    assert offline["value"] < 0
    assert not offline["globalDefault"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_the_settings_fit_the_pod(folder: Path) -> None:
    settings = load_settings(folder / "extender.yaml")
    (path,) = [p for p in folder.glob("*.yaml") if p.stem in ("daemonset", "deployment")]
    spec = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    ports = {port["containerPort"] for port in container["ports"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert str(Path(settings.decision_log).parent) in mounts
    assert str(Path(settings.model.directory).parent) in mounts
    assert spec["terminationGracePeriodSeconds"] > settings.drain_seconds
    if settings.tls.cert_file:
        assert ports == {settings.port, settings.probes.port}
        assert settings.probes.host == "0.0.0.0"  # noqa: S104 - the kubelet comes from outside
        assert str(Path(settings.tls.cert_file).parent) in mounts
    else:
        assert ports == {settings.port}
        assert settings.host == "127.0.0.1"
        assert spec["hostNetwork"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_a_hang_ends_soon_and_a_busy_process_does_not(folder: Path) -> None:
    (path,) = [p for p in folder.glob("*.yaml") if p.stem in ("daemonset", "deployment")]
    (container,) = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]["containers"]
    probe = container["livenessProbe"]
    last = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert last + probe["terminationGracePeriodSeconds"] <= 16  # 3 x 4 + 3 + 1
    assert probe["failureThreshold"] * probe["timeoutSeconds"] >= 9
    assert probe["timeoutSeconds"] >= 3  # the process may wait for a core for two


def test_the_image_holds_every_package_of_the_project() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    (packages,) = [line for line in project.splitlines() if line.startswith("packages = [")][:1]
    for package in yaml.safe_load(packages.partition("=")[2]):
        assert f"COPY {package} {package}\n" in text
    assert "--require-hashes" in text
    assert "USER 65532:65532" in text


def test_both_configurations_of_kube_scheduler_ask_for_the_same() -> None:
    """Behind TLS, only the address and the certificates differ."""
    plain = yaml.safe_load((DEPLOY / "kube-scheduler-config.yaml").read_text())
    secured = yaml.safe_load((DEPLOY / "tls" / "kube-scheduler-config.yaml").read_text())
    for entry in secured["extenders"]:
        assert entry.pop("enableHTTPS") is True
        assert set(entry.pop("tlsConfig")) == {"caFile", "certFile", "keyFile"}
        assert entry["urlPrefix"].startswith("https://")
        entry["urlPrefix"] = "http://127.0.0.1:8080/v1"
    assert secured == plain
