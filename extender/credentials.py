"""Who the extender is to the API server, by the rules of the official Kubernetes client."""

from __future__ import annotations

import asyncio
import ssl

from kubernetes import client
from kubernetes.config.config_exception import ConfigException

from extender.ports import ClusterError
from models.errors import SettingsError
from models.kube.access import load_configuration, unusable

_REFRESH_SECONDS = 30.0
"""Seconds for which a header is used; tokens in files live for minutes at least."""


class Credentials:
    """Address, certificates and token of one API server.

    The official client's loader reads them: a kubeconfig with its certificates, tokens and exec
    plugins, or a pod's service account, whose token file is read again as it changes.
    """

    def __init__(self, kubeconfig: str) -> None:
        """Raises SettingsError where there is no usable configuration.

        Args:
            kubeconfig: path of a file; empty for the service account inside a pod, else for
                $KUBECONFIG or ~/.kube/config.
        """
        self._kubeconfig = kubeconfig
        self._load()
        self._header = self._authorization()
        self._header_age = 0.0

    @property
    def server(self) -> str:
        """The API server's URL, without a slash at its end."""
        return str(self._config.host).rstrip("/")

    @property
    def tls(self) -> ssl.SSLContext | bool:
        """Whom to trust and, where there is a client certificate, who to be."""
        return self._tls

    @property
    def server_name(self) -> str | None:
        """The name in the server's certificate, where it is not that of the URL."""
        return self._config.tls_server_name or None

    async def headers(self, renew: bool = False) -> dict[str, str]:
        """The headers of a request. Raises ClusterError.

        Args:
            renew: read everything again, because the API server no longer takes what it was given.
        """
        now = asyncio.get_running_loop().time()
        try:
            if renew:
                await asyncio.to_thread(self._load)
            if renew or now - self._header_age > _REFRESH_SECONDS:
                self._header = await asyncio.to_thread(self._authorization)
                self._header_age = now
        except (SettingsError, ConfigException, OSError) as e:
            raise ClusterError(0, f"the credentials cannot be read again: {e}") from e
        return {"Authorization": self._header} if self._header else {}

    def _load(self) -> None:
        self._config = load_configuration(self._kubeconfig)
        try:
            self._tls = _tls(self._config)
        except (OSError, ValueError) as e:
            raise unusable(self._kubeconfig, e) from e

    def _authorization(self) -> str:
        """The header's value; also lets the loader read a token file again."""
        return str(self._config.get_api_key_with_prefix("BearerToken", "authorization") or "")


def _tls(settings: client.Configuration) -> ssl.SSLContext | bool:
    if not settings.verify_ssl:
        return False
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert or None)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file or None)
    return context
