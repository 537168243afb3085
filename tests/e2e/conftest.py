"""The cluster that a module's end-to-end tests share; each leaves it as it found it.

All are built on one control plane, under the same names, so a module's is gone before the next.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.controlplane import workload
from tests.controlplane.cluster import SCHEDULER, ControlPlane
from tests.controlplane.fixtures import or_unavailable
from tests.controlplane.prometheus import find_prometheus
from tests.e2e.world import World, build_world


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """50 nodes full of requests, a day of usage, kube-scheduler and the extender."""
    with _world(control_plane, tmp_path_factory.mktemp("e2e"), still=False) as made:
        yield made


@pytest.fixture(scope="module")
def still_world(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """As `world`, with one forecast for all of it, so that a replay can decide on the same."""
    with _world(control_plane, tmp_path_factory.mktemp("still"), still=True) as made:
        yield made


@contextmanager
def _world(plane: ControlPlane, folder: Path, *, still: bool) -> Iterator[World]:
    or_unavailable(find_prometheus)
    namespace = f"test-{secrets.token_hex(4)}"
    workload.create_namespace(plane.admin, namespace)
    try:
        with build_world(plane, namespace, folder, still=still) as made:
            yield made
    finally:
        plane.stop_process(SCHEDULER)
        workload.delete_all(plane.admin)
