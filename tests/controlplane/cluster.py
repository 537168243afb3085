"""`ControlPlane`: etcd and kube-apiserver, and beside them what a test asks for."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import kwok, servers, users
from .api import Api, ApiError
from .certs import create_certificates
from .errors import ProcessError
from .installation import Installation, require_installed
from .process import Process, free_port, wait_until
from .users import User
from .web import answers

ETCD = "etcd"
API_SERVER = "kube-apiserver"
SCHEDULER = "kube-scheduler"
CONTROLLER_MANAGER = "kube-controller-manager"
KWOK = "kwok"

_START_SECONDS = 180.0
_KUBECTL_SECONDS = 180.0
_TOKEN_SECONDS = 86_400
_CONFLICT = 409


class ControlPlane:
    """A cluster of one's own on 127.0.0.1, alive while the `with` block lasts.

    Start it from the main thread: its processes die with the thread that started them. Files and
    logs lie in `run_dir`; they are removed at the end, and kept when the block raised.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        installation: Installation | None = None,
        extra_users: Mapping[str, Sequence[str]] | None = None,
        api_server_flags: Sequence[str] = (),
    ) -> None:
        """`extra_users` maps names to groups; service accounts need not be among them.

        `api_server_flags` such as `--enable-priority-and-fairness=false` (load tests). Raises
        NotInstalledError when no installation is given and none was built.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self._site = servers.Site(
            installation or require_installed(), create_certificates(run_dir), run_dir
        )
        known = {**users.BUILT_IN, **(extra_users or {})}
        self._users = {name: User(name, groups) for name, groups in known.items()}
        self._tokens = run_dir / "tokens.csv"
        users.write_token_file(self._tokens, self._users.values())
        self._flags = api_server_flags
        self._ports = {name: free_port() for name in (ETCD, API_SERVER, KWOK, SCHEDULER)}
        self._tls = self._site.certificates.context()
        self._processes: dict[str, Process] = {}
        self._clients: list[Api] = []
        self.url = f"https://127.0.0.1:{self._ports[API_SERVER]}"
        self.admin = self.client(users.ADMIN)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.tidy_up(keep_logs=error is not None)

    def start(self) -> None:
        """Start etcd and kube-apiserver; return when both answer. Raises ProcessError."""
        try:
            self._start_etcd()
            self._start_api_server()
        except BaseException as e:
            self.stop()
            e.add_note(f"the logs are in {self.run_dir}")
            raise

    def stop(self) -> None:
        """End all processes, the last started first. May be repeated."""
        for client in self._clients:
            client.close()
        with contextlib.ExitStack() as stack:  # one that cannot be ended must not save the others
            for process in self._processes.values():
                stack.callback(process.stop)
        self._processes.clear()

    def tidy_up(self, *, keep_logs: bool) -> None:
        """Remove the run directory, or say where it is and remove only etcd's data."""
        if not keep_logs:
            shutil.rmtree(self.run_dir, ignore_errors=True)
            return
        shutil.rmtree(self.run_dir / "etcd", ignore_errors=True)
        sys.stderr.write(f"\nthe control plane's logs are in {self.run_dir}\n")

    def pids(self) -> dict[str, int]:
        """Return the process id of each running program, by name."""
        return {name: process.pid for name, process in self._processes.items()}

    # Who calls

    def client(self, user: str) -> Api:
        """Return a client that calls as `user`. Raises KeyError for an unknown one."""
        api = Api(self.url, self._users[user].token, self._tls)
        self._clients.append(api)
        return api

    def kubeconfig(self, user: str) -> Path:
        """Write and return a kubeconfig for `user`. Raises KeyError for an unknown one."""
        path = self.run_dir / f"kubeconfig-{user.replace(':', '-')}"
        users.write_kubeconfig(path, self.url, self._site.certificates.ca, self._users[user])
        return path

    def service_account(self, namespace: str, name: str) -> str:
        """Create the account where missing, have a token made for it, return its user name.

        The name (`system:serviceaccount:NAMESPACE:NAME`) works with `client` and `kubeconfig`;
        it may do what the test's own role bindings say, and nothing else.
        """
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        try:
            self.admin.post(accounts, {"metadata": {"name": name}})
        except ApiError as e:
            if e.status != _CONFLICT:
                raise
        request = {"spec": {"audiences": [], "expirationSeconds": _TOKEN_SECONDS}}
        answer = self.admin.post(f"{accounts}/{name}/token", request)
        user = User(f"system:serviceaccount:{namespace}:{name}", (), answer["status"]["token"])
        self._users[user.name] = user
        return user.name

    def kubectl(self, *arguments: str, user: str = users.ADMIN) -> str:
        """Run kubectl and return what it printed. Raises subprocess.CalledProcessError."""
        program = self._site.installation.program("kubectl")
        # Its discovery cache belongs here too, not into the home of whoever runs the tests.
        own = [f"--kubeconfig={self.kubeconfig(user)}", f"--cache-dir={self.run_dir / 'kubectl'}"]
        done = subprocess.run(
            [program, *own, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=_KUBECTL_SECONDS,
        )
        return done.stdout

    # What runs beside the API server

    @property
    def kwok_port(self) -> int:
        """The port of kwok's metrics, for `kwok.scrape_config`."""
        return self._ports[KWOK]

    def start_kwok(self) -> None:
        """Make each node come alive and each bound pod run; nothing to do when it runs."""
        if KWOK in self._processes:
            return
        port = self.kwok_port
        command = kwok.command(self._site, port, self.kubeconfig(users.ADMIN))
        self._launch(KWOK, command, f"http://127.0.0.1:{port}/healthz")

    def start_scheduler(self, config: Mapping[str, Any] | None = None, verbosity: int = 2) -> None:
        """Start kube-scheduler, in place of one that runs.

        `config` is a KubeSchedulerConfiguration as a dictionary (profiles, extenders ...); the
        connection and leader election are filled in. Raises ProcessError when it is refused.
        """
        self.stop_process(SCHEDULER)
        port, kubeconfig = self._ports[SCHEDULER], self.kubeconfig(users.SCHEDULER)
        command = servers.scheduler(self._site, port, kubeconfig, config or {}, verbosity)
        self._launch(SCHEDULER, command, f"https://127.0.0.1:{port}/readyz")

    def scheduler_metrics(self) -> str:
        """Return the running kube-scheduler's /metrics page."""
        url = f"https://127.0.0.1:{self._ports[SCHEDULER]}"
        scheduler = Api(url, self._users[users.ADMIN].token, self._tls)
        with contextlib.closing(scheduler):
            return scheduler.text("/metrics")

    def start_controller_manager(self) -> None:
        """Start kube-controller-manager: deployments, jobs, garbage collection, node lifecycle."""
        port, kubeconfig = free_port(), self.kubeconfig(users.CONTROLLER_MANAGER)
        command = servers.controller_manager(self._site, port, kubeconfig)
        self._launch(CONTROLLER_MANAGER, command, f"https://127.0.0.1:{port}/healthz")

    def stop_process(self, name: str) -> None:
        """End one program (SCHEDULER, KWOK ...), if it runs."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.stop()

    def paused(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep one running program (API_SERVER ...) from running while the block lasts."""
        return self._processes[name].paused()

    def restart_api_server(self) -> None:
        """End kube-apiserver and start it again on the same port, with the same data."""
        self.stop_process(API_SERVER)
        for client in self._clients:
            client.close()
        self._start_api_server()

    def _start_etcd(self) -> None:
        port = self._ports[ETCD]
        command = servers.etcd(self._site, port, free_port())
        self._launch(ETCD, command, f"http://127.0.0.1:{port}/health")

    def _start_api_server(self) -> None:
        port, etcd_port = self._ports[API_SERVER], self._ports[ETCD]
        command = servers.api_server(self._site, port, etcd_port, self._tokens, self._flags)
        self._launch(API_SERVER, command, f"{self.url}/readyz")
        wait_until(self._has_default_namespace, _START_SECONDS, "the default namespace exists")

    def _has_default_namespace(self) -> bool:
        # It is created after the server calls itself ready.
        names = {item["metadata"]["name"] for item in self.admin.get("/api/v1/namespaces")["items"]}
        return {"default", "kube-node-lease", "kube-system"} <= names

    def _launch(self, name: str, command: servers.Command, ready_url: str) -> None:
        if name in self._processes:
            raise ProcessError(f"{name} is running already")
        process = Process(name, command, self.run_dir)
        self._processes[name] = process  # before it is ready: `stop` must know it
        tls = self._tls if ready_url.startswith("https:") else None
        process.wait_ready(lambda: answers(ready_url, tls), _START_SECONDS)
