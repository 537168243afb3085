"""kwok: hollow kubelets for all nodes, with CPU counters that follow pods' annotations."""

from collections.abc import Mapping
from pathlib import Path

from .api import Json
from .servers import Command, Site

# Without a lease duration nodes flap to NotReady beside a controller manager.
_LEASE_SECONDS = 40
_NODE_IN_PATH = "/metrics/nodes/([^/]+)/metrics/resource"


def command(site: Site, port: int, kubeconfig: Path) -> Command:
    """Return kwok's command, after writing its stages, metrics and usages into one file."""
    config = site.run_dir / "kwok.yaml"
    files = site.installation.kwok_files()
    config.write_text("\n---\n".join(file.read_text() for file in files))
    return [
        site.installation.program("kwok"),
        f"--kubeconfig={kubeconfig}",
        f"--config={config}",
        "--manage-all-nodes=true",
        "--node-ip=127.0.0.1",
        f"--node-port={port}",
        f"--server-address=127.0.0.1:{port}",
        f"--node-lease-duration-seconds={_LEASE_SECONDS}",
    ]


def scrape_config(
    port: int, interval: float = 2.0, labels: Mapping[str, str] | None = None
) -> Json:
    """Return a Prometheus job that scrapes all nodes of the kwok on `port`.

    It asks kwok for the nodes, and scrapes each, every `interval` seconds. Series carry the
    labels of a kubelet's: job="kubelet", node, instance (the node again), container, namespace,
    pod; and `labels` (such as a cluster's name), which the other functions call the same.
    """
    every = f"{round(interval * 1000)}ms"
    relabel: list[Json] = [
        {"source_labels": ["__metrics_path__"], "regex": _NODE_IN_PATH, "target_label": "node"},
        {"source_labels": ["node"], "target_label": "instance"},
        {"regex": "metrics_name", "action": "labeldrop"},
    ]
    relabel += [
        {"target_label": name, "replacement": value} for name, value in (labels or {}).items()
    ]
    return {
        "job_name": "kubelet",
        "scrape_interval": every,
        "http_sd_configs": [
            {
                "url": f"http://127.0.0.1:{port}/discovery/prometheus",
                "refresh_interval": every,
            }
        ],
        "relabel_configs": relabel,
    }
