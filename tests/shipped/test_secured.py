"""A real kube-scheduler that shows a certificate, and what a refused pod's owner reads."""

from __future__ import annotations

import re
import secrets
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.authorities import Authority, Files
from tests.controlplane import objects, workload
from tests.controlplane.api import Json
from tests.controlplane.cluster import SCHEDULER, ControlPlane
from tests.controlplane.process import Process, free_port, wait_until
from tests.e2e.world import DEPLOY, RESOURCE, shipped_account

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(900)]

CONNECTION = re.compile("certificate|tls|EOF|reset|refused|closed", re.IGNORECASE)
"""What Go's client says of a connection that it could not make or keep."""

NAME = "kube-scheduler"
"""The client's name that deploy/tls/extender.yaml lets in."""


@dataclass(frozen=True)
class Place:
    """An extender behind TLS that knows no usage: it places only pods that ask for nothing."""

    plane: ControlPlane
    namespace: str
    port: int
    probes: str
    files: Files
    authority: Authority

    def offline(self, name: str, ask: int) -> None:
        """Create an offline pod."""
        pod = objects.pod(name, self.namespace, extended={RESOURCE: ask})
        workload.create_pods(self.plane.admin, [pod])

    def rotate(self) -> None:
        """Give the extender another certificate, and wait until it uses it."""
        renewed = 'archimedes_tls_reloads_total{outcome="renewed"}'
        before = self.metric(renewed)
        self.files.write(self.authority, self.authority)
        wait_until(lambda: self.metric(renewed) > before, 20, "the new certificate is in use")

    def metric(self, sample: str) -> float:
        """A sample of /metrics, from the listener that needs no certificate; 0 where it is not."""
        with urllib.request.urlopen(f"{self.probes}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{sample} "):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0


@pytest.fixture(scope="module")
def place(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, namespace = tmp_path_factory.mktemp("secured"), f"test-{secrets.token_hex(4)}"
    admin = control_plane.admin
    workload.create_namespace(admin, namespace)
    account = shipped_account(control_plane)
    workload.create_nodes(admin, [objects.node(f"secured-{n}", cpu=8.0) for n in range(3)])
    files, authority = Files(folder), Authority()
    files.write(authority, authority)
    port, probe_port = free_port(), free_port()
    config = _config(folder, control_plane.kubeconfig(account), port, probe_port)
    command = [sys.executable, "-m", "archimedes", "extender", "--config", str(config)]
    extender = Process("secured-extender", command, folder)
    here = Place(control_plane, namespace, port, f"http://127.0.0.1:{probe_port}", files, authority)
    try:
        extender.wait_ready(lambda: _ready(here.probes), 60)
        control_plane.start_scheduler(_scheduler(folder, authority, port, NAME))
        yield here
    finally:
        control_plane.stop_process(SCHEDULER)
        extender.stop()
        workload.delete_all(admin)


def _config(folder: Path, kubeconfig: Path, port: int, probe_port: int) -> Path:
    """The shipped settings with the test's addresses and files."""
    settings: Json = yaml.safe_load((DEPLOY / "tls" / "extender.yaml").read_text())
    settings["host"] = settings["probes"]["host"] = "127.0.0.1"
    settings["port"], settings["probes"]["port"] = port, probe_port
    for name, file in settings["tls"].items():
        if name.endswith("_file"):
            settings["tls"][name] = str(folder / Path(file).name)
    settings["tls"]["reload_seconds"] = 1
    settings["kubeconfig"] = str(kubeconfig)
    settings["prometheus"] = {}
    settings["model"] = {"directory": str(folder / "models")}
    settings["decision_log"] = str(folder / "decisions.jsonl")
    path = folder / "extender.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _scheduler(folder: Path, authority: Authority, port: int, name: str) -> Json:
    """The shipped configuration with the test's address, and a certificate of this name."""
    certificate, key = authority.client(name)
    files = {"client.crt": certificate, "client.key": key, "server-ca.crt": authority.certificate}
    for file, content in files.items():
        (folder / f"{name}-{file}").write_bytes(content)
    text = (DEPLOY / "tls" / "kube-scheduler-config.yaml").read_text()
    text = text.replace("archimedes-extender.kube-system.svc:8443", f"127.0.0.1:{port}")
    text = text.replace("/etc/kubernetes/archimedes/", f"{folder}/{name}-")
    config: Json = yaml.safe_load(text)
    return config


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # refused, or late
        return False


def test_kube_scheduler_shows_its_certificate_and_rotations_cost_it_nothing(place: Place) -> None:
    """Forty pods are bound by the extender while its certificate is replaced again and again."""
    before = binds(place)
    for number in range(40):
        place.offline(f"free-{number:02d}", 0)
        if number % 10 == 5:
            place.rotate()
    names = [f"free-{number:02d}" for number in range(40)]
    workload.wait_for_phase(place.plane.admin, place.namespace, names)
    # An API server that stands still for seconds makes a bind late: it fails, and may be bound.
    bound, failed = (now - then for now, then in zip(binds(place), before, strict=True))
    assert 40 - failed <= bound <= 40
    refusals = [
        str(event.get("message") or event.get("note"))
        for name in names
        for event in workload.events(place.plane.admin, place.namespace, name)
        if event["reason"] == "FailedScheduling"
    ]
    assert len(refusals) <= failed, refusals
    assert not [text for text in refusals if CONNECTION.search(text)]


def binds(place: Place) -> tuple[float, float]:
    """How many binds the extender has made, and how many have failed."""
    bound, failed = (f'archimedes_binds_total{{outcome="{each}"}}' for each in ("bound", "failed"))
    return place.metric(bound), place.metric(failed)


def test_a_refused_pod_is_told_in_kubectl_describe(place: Place) -> None:
    place.offline("waits", 1000)

    def described() -> str:
        text = place.plane.kubectl("describe", "pod", "waits", "-n", place.namespace)
        return text if "NothingReclaimable" in text else ""

    said = wait_until(described, 180, "kubectl describe shows the event")
    (line,) = [each for each in said.splitlines() if "NothingReclaimable" in each]
    assert "Warning" in line
    assert "archimedes.dev/extender" in line
    assert "none of 3 nodes can take it: no usage forecast, nothing is promised (3)" in line
    written = place.metric('archimedes_events_total{outcome="written"}')
    assert written >= 1
    assert place.metric('archimedes_events_total{outcome="failed"}') == 0


def test_another_name_of_the_same_authority_binds_nothing(place: Place, tmp_path: Path) -> None:
    place.plane.start_scheduler(_scheduler(tmp_path, place.authority, place.port, "kubelet"))
    try:
        place.offline("stranger", 0)

        def failed() -> list[str]:
            events = workload.events(place.plane.admin, place.namespace, "stranger")
            return [str(e.get("message") or e.get("note")) for e in events]

        wait_until(lambda: any("403" in text for text in failed()), 180, "the refusal shows")
        pod = workload.pod(place.plane.admin, place.namespace, "stranger")
        assert not pod["spec"].get("nodeName")
    finally:
        folder = place.files.folder
        place.plane.start_scheduler(_scheduler(folder, place.authority, place.port, NAME))
