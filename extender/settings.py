"""Settings of the extender: a YAML file, checked before anything starts."""

from __future__ import annotations

import ast
import inspect
import ipaddress
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta

from models.errors import SettingsError
from models.kube.request import RECLAIMED
from models.policy import Policy
from models.struct_words import allowed
from models.tracking import tracking_problem
from models.usage_source import PrometheusSettings, problems
from models.yaml_file import read_yaml, to_struct

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LEAST_RECORDING = 64
_RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the champion comes from."""

    directory: str = "models-cache"
    """Folder for local copies of model versions: what serves after a restart without MLflow."""

    tracking_uri: str = ""
    """MLflow's address, such as http://mlflow.mlops:5000 or sqlite:///archimedes.db.
    Empty: only the local copies are served."""

    poll_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 60.0
    """Seconds between looks at the champion alias: how late a promotion or rollback may arrive.
    A look is one small HTTP request."""


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS with client certificates; on where the three files are set."""

    cert_file: str = ""
    """PEM file with the server's certificate and what leads to its authority. Empty: plain HTTP."""

    key_file: str = ""
    """PEM file with the certificate's private key, without a passphrase."""

    client_ca_file: str = ""
    """PEM file with the authorities whose client certificates are accepted. Take an authority of
    its own: whoever has a certificate of it can bind pods."""

    client_names: list[str] = []
    """Common names that a client's certificate may have, such as [kube-scheduler]. Empty: any.
    Needed where the authority also signs others, as a cluster's own does."""

    reload_seconds: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    """Seconds between looks at the files: how late a rotation may arrive. A look reads them."""


class ProbeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second listener, for those who may look and not call."""

    host: str = ""
    """Address of a plain listener with /livez, /readyz, /healthz and /metrics alone, for kubelets
    and Prometheus; such as 0.0.0.0. No verb is there, and no page that names a pod. Empty: none."""

    port: Annotated[int, Meta(ge=0, le=65_535)] = 8081
    """Port of that listener; 0 takes a free one, which the log names."""


class EventSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Events on offline pods that were refused or could not be bound."""

    enabled: bool = True
    """Whether events are written. Needs the right to create events."""

    per_minute: Annotated[int, Meta(ge=1, le=6000)] = 60
    """Events a minute at most, over all pods. Each is a write to etcd that lives for an hour."""

    pod_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    """Seconds between two events of one kind on one pod; the later one says how often it happened.
    Lower says sooner that the reason has changed."""

    max_waiting: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    """Pods that may wait for their event; those beyond are only counted. Bounds the memory."""


class LockSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where resource locks are written: CPU that is kept from reclaiming for announced events."""

    name: str = "archimedes-locks"
    """Name of the ConfigMap that holds the locks; one that does not exist holds none. Empty: it is
    not read, which needs no right to. Another name must also stand in deploy/rbac.yaml's Role."""

    namespace: str = "kube-system"
    """Namespace of that ConfigMap, and of the Role and its binding in deploy/rbac.yaml. Whoever may
    write there can stop reclaiming, so this is one for administrators."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator chooses; each default says its unit and why."""

    host: str = "127.0.0.1"
    """Address to listen on. kube-scheduler runs beside the extender, so loopback is enough."""

    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    """Port to listen on; 0 takes a free one, which the log names."""

    insecure_listen: bool = False
    """Allow the verbs in plain HTTP on an address that others can reach. Whoever reaches the port
    can bind pods, so do this only behind a network policy or a TLS proxy. Not needed with tls."""

    kubeconfig: str = ""
    """Path of a kubeconfig file. Empty: the service account inside a pod, else $KUBECONFIG or
    ~/.kube/config."""

    resource: str = RECLAIMED
    """Name of the reclaimed resource, one unit = one millicore. Offline pods ask for it; the same
    name stands in kube-scheduler's managedResources and in deploy/admission-policy.yaml."""

    candidates: Annotated[int, Meta(ge=0, le=10_000)] = 32
    """How many nodes filter returns at most, the best ones; 0 for all that fit. 32 saves
    kube-scheduler most of its scoring and leaves its own scores a choice."""

    choose_alone: bool = True
    """Where more than ``candidates`` nodes fit a pod about whose node kube-scheduler has no
    preference, or none but to spread replicas, return only the best: kube-scheduler then need not
    rank any, and an offline pod's ask is held on one node. docs/deploy.md says which these are."""

    hold_seconds: Annotated[float, Meta(gt=0, le=600)] = 15.0
    """Seconds for which a pod's ask stays charged on the offered nodes until bind names one.
    Binding follows within milliseconds; higher blocks CPU longer for pods that are never bound."""

    bind_seconds: Annotated[float, Meta(gt=0, le=60)] = 2.5
    """Seconds that the API server has to answer a bind; below kube-scheduler's httpTimeout (3 s),
    so that it hears the reason."""

    request_seconds: Annotated[float, Meta(gt=0, le=60)] = 2.5
    """Seconds in which a request's head must have arrived from its first byte on, and then its
    body; below kube-scheduler's httpTimeout."""

    max_connections: Annotated[int, Meta(ge=8, le=100_000)] = 512
    """Connections that are open at once; beyond, the one that has been idle for longest is closed.
    kube-scheduler needs one for each bind under way; each takes a file descriptor."""

    max_body_bytes: Annotated[int, Meta(ge=2**21, le=2**30)] = 2**25
    """Largest request in bytes. 32 MiB hold 10,000 names a hundred times over, and the whole Node
    objects of 2,000 nodes where nodeCacheCapable is false."""

    watch_max_age: Annotated[float, Meta(ge=10, le=3600)] = 150.0
    """Seconds of silence of the API server's watches after which nothing new is promised.
    Bookmarks come about once a minute; higher rides out longer outages on older knowledge."""

    advertise: bool = True
    """Whether nodes' status advertises the resource, so that kube-scheduler and kubelet enforce
    the ceiling too. Needs the right to patch nodes/status. Where it is false, set
    ignoredByScheduler: true in kube-scheduler's managedResources: else no node fits an offline
    pod."""

    advertise_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of a node's allocatable CPU that is advertised, and promised at most. Fixed: lowering
    it later makes kubelets reject pods that were rightly placed."""

    refresh_seconds: Annotated[float, Meta(ge=1, le=3600)] = 300.0
    """Seconds between refreshes of usage and forecasts: one usage window. Lower only helps to see
    new pods' usage sooner, as windows do not get shorter."""

    drain_seconds: Annotated[float, Meta(ge=0, le=300)] = 10.0
    """Seconds that calls under way may take after SIGTERM; more than bind_seconds."""

    decision_log: str = ""
    """File for one JSON line per record (a decision, bind, preempt answer or end), rotated at
    64 MiB with one predecessor. Empty: the last 10,000 are kept in memory only, 64 MiB at most."""

    recording_megabytes: Annotated[int, Meta(ge=0, le=1_000_000)] = 512
    """Megabytes of the recording beside the decision log (FILE.recording): what each decision was
    made on, for `archimedes shadow follow`. At least 64, or 0 for none. Higher reaches further."""

    recording_hours: Annotated[float, Meta(gt=0, le=8760)] = 50.0
    """Hours after which recorded decisions are removed. The live shadow may be away for so long
    and misses nothing: two days, and a margin."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged, as JSON lines on stderr."""

    policy: Policy = Policy()
    """The policy where no model serves; a model version brings its own."""

    locks: LockSettings = LockSettings()
    """Where resource locks are written."""

    prometheus: PrometheusSettings = PrometheusSettings()
    """Where usage comes from."""

    model: ModelSettings = ModelSettings()
    """Where the champion comes from."""

    tls: TlsSettings = TlsSettings()
    """Who may call, and how they prove it."""

    probes: ProbeSettings = ProbeSettings()
    """Who may look at health and metrics beside them."""

    events: EventSettings = EventSettings()
    """What offline pods are told, and how often."""


def load_settings(path: Path | None) -> Settings:
    """Read a settings file; the defaults where there is none.

    Raises:
        SettingsError: the file cannot be read, or a setting is unknown, ill-typed or out of range.
    """
    return Settings() if path is None else read_yaml(path, "settings file", parse_settings)


def parse_settings(content: object) -> Settings:
    """Settings from what a YAML file holds; the defaults where that is nothing.

    Raises:
        SettingsError: a setting is unknown, ill-typed or out of range.
    """
    settings = to_struct({} if content is None else content, Settings, "setting")
    for problem in _problems(settings):
        raise SettingsError(problem)
    return settings


def describe() -> str:
    """All settings with their defaults as a commented YAML file."""
    return "\n".join(_yaml(Settings(), "")) + "\n"


def documented(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Each field of a settings struct with the text that stands under it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - inspect found a class
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(doc))
            ):
                found[name] = " ".join(doc.split())
    return found


def _problems(settings: Settings) -> Iterator[str]:
    plain = not settings.tls.cert_file and not settings.insecure_listen
    if plain and not _is_loopback(settings.host):
        yield (
            f"host: {settings.host} can be reached by others, and plain HTTP lets them bind pods; "
            "listen on 127.0.0.1, set tls, or set insecure_listen: true"
        )
    if not _RESOURCE.fullmatch(settings.resource) or "kubernetes.io/" in settings.resource:
        yield (
            f"resource: {settings.resource!r} is no extended resource: it needs a domain of your "
            "own and a /, such as archimedes.dev/reclaimed-millicpu"
        )
    if 0 < settings.recording_megabytes < _LEAST_RECORDING:
        yield f"recording_megabytes: must be 0, or at least {_LEAST_RECORDING}: four segments"
    if settings.drain_seconds < settings.bind_seconds:
        yield "drain_seconds: must not be less than bind_seconds, or a bind could be cut off"
    yield from _tls_problems(settings.tls)
    if not _NAME.fullmatch(settings.locks.name or "none"):
        yield f"locks.name: {settings.locks.name!r} is no name of a ConfigMap"
    if not _NAME.fullmatch(settings.locks.namespace):
        yield f"locks.namespace: {settings.locks.namespace!r} is no name of a namespace"
    uri = settings.model.tracking_uri
    if uri and (problem := tracking_problem(uri)):
        yield f"model.tracking_uri: {problem}"
    yield from problems(settings.prometheus)


def _tls_problems(tls: TlsSettings) -> Iterator[str]:
    files = {name: getattr(tls, name) for name in ("cert_file", "key_file", "client_ca_file")}
    if any(files.values()):
        for name, file in files.items():
            if not file:
                yield f"tls.{name}: is missing; TLS needs {', '.join(files)}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _yaml(value: msgspec.Struct, indent: str) -> Iterator[str]:
    for name, text in documented(type(value)).items():
        values = allowed(type(value), name)
        told = f"{text} Allowed: {values}." if values else text
        for line in textwrap.wrap(told, 96 - len(indent)):
            yield f"{indent}# {line}"
        default = getattr(value, name)
        if isinstance(default, msgspec.Struct):
            yield f"{indent}{name}:"
            yield from _yaml(default, indent + "  ")
        else:
            yield f"{indent}{name}: {_scalar(default)}"


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return value if _plain(value) else f'"{value}"'
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _plain(text: str) -> bool:
    return bool(text) and yaml.safe_load(text) == text
