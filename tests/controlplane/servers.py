"""The command lines of the control plane's servers, each on its own port of 127.0.0.1."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .api import Json
from .certs import Certificates
from .installation import Installation

Command = list[str | Path]

# Calls a second. By default kube-scheduler allows itself 50 and the controller manager 20: a test
# that binds hundreds of pods would measure that.
_QPS = 2_000
_BURST = 4_000


@dataclass(frozen=True)
class Site:
    """What every server is told: where its files are and how to prove who it is."""

    installation: Installation
    certificates: Certificates
    run_dir: Path

    def identity(self, port: int) -> list[str]:
        """Return the flags of a TLS server on `port`."""
        return [
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={self.certificates.server}",
            f"--tls-private-key-file={self.certificates.server_key}",
        ]


def etcd(site: Site, port: int, peer_port: int) -> Command:
    """Return etcd's command; without fsync, since its data is thrown away."""
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return [
        site.installation.program("etcd"),
        f"--data-dir={site.run_dir / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    ]


def api_server(
    site: Site, port: int, etcd_port: int, token_file: Path, extra_flags: Sequence[str]
) -> Command:
    """Return kube-apiserver's command, with RBAC; `extra_flags` come last and win."""
    certificates = site.certificates
    return [
        site.installation.program("kube-apiserver"),
        *site.identity(port),
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        # The other servers read both from a config map, and repeat errors where one is missing.
        f"--client-ca-file={certificates.ca}",
        f"--requestheader-client-ca-file={certificates.ca}",
        "--requestheader-allowed-names=none",
        f"--token-auth-file={token_file}",
        "--authorization-mode=RBAC",
        f"--service-account-key-file={certificates.token_key}",
        f"--service-account-signing-key-file={certificates.token_key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.0.0.0/24",
        # ServiceAccount would want an account in each namespace before any pod; the other one
        # taints every new node until a controller manager takes the taint away.
        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
        *extra_flags,
    ]


def scheduler(
    site: Site, port: int, kubeconfig: Path, config: Mapping[str, Any], verbosity: int
) -> Command:
    """Return kube-scheduler's command, after writing its completed configuration file."""
    file = site.run_dir / "kube-scheduler.json"
    file.write_text(json.dumps(scheduler_config(kubeconfig, config), indent=1))
    return [
        site.installation.program("kube-scheduler"),
        f"--config={file}",
        *site.identity(port),
        *_delegation(kubeconfig),
        f"--v={verbosity}",
    ]


def scheduler_config(kubeconfig: Path, config: Mapping[str, Any]) -> Json:
    """Return `config` (a KubeSchedulerConfiguration) completed for this cluster.

    Ours is only what a test must not choose: the connection, and no leader election.
    """
    connection = {
        "qps": _QPS,
        "burst": _BURST,
        **config.get("clientConnection", {}),
        "kubeconfig": str(kubeconfig),
    }
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        **config,
        "clientConnection": connection,
        "leaderElection": {"leaderElect": False},
    }


def controller_manager(site: Site, port: int, kubeconfig: Path) -> Command:
    """Return kube-controller-manager's command."""
    return [
        site.installation.program("kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        f"--kube-api-qps={_QPS}",
        f"--kube-api-burst={_BURST}",
        *site.identity(port),
        *_delegation(kubeconfig),
        # The bootstrap roles are bound to each controller's own account, not to the manager.
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={site.certificates.token_key}",
        f"--root-ca-file={site.certificates.ca}",
    ]


def _delegation(kubeconfig: Path) -> list[str]:
    # Lets a server ask the API server who calls its /metrics, and whether that is allowed.
    return [
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
    ]
