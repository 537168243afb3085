"""Where the API server is and who calls it, by the rules of the official Kubernetes client."""

from __future__ import annotations

import os
from pathlib import Path

from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException

from models.errors import SettingsError


def load_configuration(kubeconfig: str) -> client.Configuration:
    """The official client's configuration: a kubeconfig's, or that of a pod's service account.

    Args:
        kubeconfig: path of a file; empty for the service account inside a pod, else for
            $KUBECONFIG or ~/.kube/config.

    Raises:
        SettingsError: there is no usable configuration.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig:
            _load_file(kubeconfig, configuration)
        elif "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            _load_file(None, configuration)
    except (ConfigException, OSError, ValueError) as e:
        raise unusable(kubeconfig, e) from e
    return configuration


def unusable(kubeconfig: str, error: Exception) -> SettingsError:
    """The sentence about a configuration that does not work."""
    where = f"kubeconfig {kubeconfig}" if kubeconfig else "Kubernetes access"
    return SettingsError(
        f"{where} cannot be used: {str(error).rstrip('.')}; set kubeconfig to a file that names "
        "the cluster"
    )


def _load_file(path: str | None, configuration: client.Configuration) -> None:
    if path is not None and not Path(path).is_file():
        raise ConfigException("there is no such file")
    config.load_kube_config(  # type: ignore[no-untyped-call]
        path, client_configuration=configuration, persist_config=False
    )
