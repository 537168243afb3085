"""The cluster that the end-to-end tests share; each leaves it as it found it."""

import secrets
from collections.abc import Iterator

import pytest

from tests.controlplane import workload
from tests.controlplane.cluster import SCHEDULER, ControlPlane
from tests.controlplane.fixtures import or_unavailable
from tests.controlplane.prometheus import find_prometheus
from tests.e2e.world import World, build_world


@pytest.fixture(scope="package")
def world(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """50 nodes full of requests, a day of usage, kube-scheduler and the extender."""
    or_unavailable(find_prometheus)
    namespace = f"test-{secrets.token_hex(4)}"
    workload.create_namespace(control_plane.admin, namespace)
    try:
        with build_world(control_plane, namespace, tmp_path_factory.mktemp("e2e")) as made:
            yield made
    finally:
        control_plane.stop_process(SCHEDULER)
        workload.delete_all(control_plane.admin)
