"""pytest fixtures. A conftest imports them: `from tests.controlplane.fixtures import ...`.

Where something must be installed first the tests are skipped, saying what and how; under
continuous integration (CI=true) that is a failure, since there nobody reads skips.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from . import workload
from .cluster import CONTROLLER_MANAGER, SCHEDULER, ControlPlane
from .errors import NotInstalledError
from .installation import require_installed
from .prometheus import find_prometheus

T = TypeVar("T")

# A user without any role, to see that RBAC is on.
NOBODY = "nobody"


@pytest.fixture(scope="session")
def control_plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kwok, started once a session. Use `cluster` in tests."""
    installation = or_unavailable(require_installed)
    failed_before = request.session.testsfailed
    run_dir = tmp_path_factory.mktemp("controlplane")
    plane = ControlPlane(run_dir, installation=installation, extra_users={NOBODY: ()})
    try:
        plane.start()
        plane.start_kwok()
        yield plane
    finally:
        plane.stop()
        plane.tidy_up(keep_logs=request.session.testsfailed > failed_before)


@pytest.fixture
def cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The session's control plane, empty; afterwards its schedulers, pods and nodes are gone."""
    yield control_plane
    control_plane.stop_process(SCHEDULER)
    control_plane.stop_process(CONTROLLER_MANAGER)
    workload.delete_all(control_plane.admin)


@pytest.fixture
def namespace(cluster: ControlPlane) -> str:
    """A namespace of the test's own: kwok and Prometheus remember pods by name."""
    name = f"test-{secrets.token_hex(4)}"
    workload.create_namespace(cluster.admin, name)
    return name


@pytest.fixture(scope="session")
def prometheus_installed() -> None:
    """Skip (in CI: fail) where Prometheus is not installed."""
    or_unavailable(find_prometheus)


def or_unavailable(find: Callable[[], T]) -> T:
    """Return what `find` finds; where it raises NotInstalledError skip, or fail where CI=true."""
    try:
        return find()
    except NotInstalledError as e:
        reason = str(e)
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
