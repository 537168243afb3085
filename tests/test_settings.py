"""Settings: what is refused and how it is named, and that everything is documented."""

from pathlib import Path

import msgspec
import prometheus_client
import pytest
import yaml
from typer.testing import CliRunner

from extender.cli import app
from extender.settings import (
    EventSettings,
    LockSettings,
    ModelSettings,
    ProbeSettings,
    Settings,
    TlsSettings,
    describe,
    documented,
    load_settings,
    parse_settings,
)
from extender.telemetry import Telemetry
from models.errors import SettingsError
from models.policy import Policy
from models.struct_words import allowed
from models.usage_source import PrometheusSettings

TLS = {"cert_file": "tls.crt", "key_file": "tls.key", "client_ca_file": "ca.crt"}
DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_no_file_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert load_settings(None) == load_settings(empty) == Settings()


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("port: 9000\nprometheus: {url: 'http://p:9090', cluster_label: {cluster: b}}\n")
    settings = load_settings(path)
    assert settings.port == 9000
    assert settings.prometheus.cluster_label == {"cluster": "b"}
    assert settings.policy == Policy()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"prot": 1}, "no setting prot; did you mean port?"),
        ({"zzz": 1}, "no setting zzz"),
        ({"prometheus": {"uri": "x"}}, "no setting prometheus.uri; did you mean prometheus.url?"),
        ({"policy": {"targets": 1}}, "no setting policy.targets"),
        ({"port": "8080"}, "port: expected int"),
        ({"port": 70_000}, "port: expected int <= 65535"),
        ({"hold_seconds": 0}, "hold_seconds: expected float > 0"),
        ({"hold_seconds": float("nan")}, "hold_seconds"),
        ({"hold_seconds": float("inf")}, "hold_seconds"),
        ({"advertise_share": 1.5}, "advertise_share: expected float <= 1"),
        ({"policy": {"target": 0.5}}, "policy.target"),
        (
            {"policy": {"rebuild_weight": float("inf")}},
            "policy.rebuild_weight: expected float <= 1",
        ),
        (
            {"policy": {"system_reserve": float("inf")}},
            "policy.system_reserve: expected float <= 1",
        ),
        ({"policy": {"max_usage_age": float("inf")}}, "policy.max_usage_age: expected float <= 6"),
        ({"policy": None}, "policy: is empty"),
        ({"policy": []}, "policy: expected a mapping"),
        ({"log_level": "loud"}, "log_level: 'loud' is none of debug, error, info, warning"),
        ({"max_body_bytes": 1024}, "max_body_bytes"),
        (["port"], "expected a mapping"),
        ({"host": "0.0.0.0"}, "insecure_listen"),  # noqa: S104
        ({"host": "scheduler.example"}, "insecure_listen"),
        ({"resource": "cpu"}, "resource"),
        ({"resource": "kubernetes.io/batch-cpu"}, "resource"),
        ({"drain_seconds": 1}, "drain_seconds"),
        ({"tls": {"cert_file": "tls.crt"}}, "tls.key_file"),
        ({"tls": {"cert_file": "tls.crt", "key_file": "tls.key"}}, "tls.client_ca_file"),
        ({"tls": {"client_ca_file": "ca.crt"}}, "tls.cert_file"),
        ({"probes": {"port": 70_000}}, "probes.port: expected int <= 65535"),
        (
            {"model": {"tracking_uri": "mlflow:5000"}},
            "tracking_uri: 'mlflow:5000' is neither",
        ),
        ({"model": {"tracking_uri": "http://[bad"}}, "tracking_uri: 'http://[bad' is neither"),
        ({"model": {"tracking_uri": "http://mlflow:port"}}, "model.tracking_uri"),
        ({"model": {"tracking_uri": "sqlite://foo.db"}}, "model.tracking_uri"),
        ({"model": {"tracking_uri": "sqlite:///"}}, "model.tracking_uri"),
        ({"model": {"tracking_uri": "http://u:secret@"}}, "model.tracking_uri: 'http://' is"),
        ({"prometheus": None}, "prometheus: is empty; leave it out"),
        ({"tls": {**TLS, "client_names": "scheduler"}}, "tls.client_names"),
        ({"events": {"per_minute": 0}}, "events.per_minute"),
        ({"locks": {"name": "a b"}}, "locks.name"),
        ({"locks": {"name": "a,metadata.name=b"}}, "locks.name"),
        ({"locks": {"namespace": ""}}, "locks.namespace"),
        ({"prometheus": {"url": "p:9090"}}, "prometheus.url"),
        ({"prometheus": {"url": "file:///etc/passwd"}}, "prometheus.url"),
        ({"prometheus": {"cluster_label": {"a-b": "c"}}}, "prometheus.cluster_label"),
        ({"prometheus": {"cluster_label": {"a": 1}}}, "prometheus.cluster_label"),
        ({"prometheus": {"query": "q", "cluster_label": {"a": "b"}}}, "prometheus.query"),
    ],
)
def test_a_bad_setting_is_named(content: object, named: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(content)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert parse_settings({"host": host}).host == host


def test_others_may_reach_it_where_that_is_wanted() -> None:
    assert parse_settings({"host": "::", "insecure_listen": True}).host == "::"
    assert parse_settings({"host": "::", "tls": TLS}).host == "::"
    assert parse_settings({"probes": {"host": "::"}}).probes.host == "::"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"port: [", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"port: x", "port: expected"),
        (b"port: 1\nport: 2", "port stands there twice"),
        (b"events:\n  enabled: true\n  enabled: false", "enabled stands there twice"),
        (b"[" * 30_000, "is nested too deeply"),
        (b"port: &p 1\nprobes: {port: *p}", "refers to *p: write what it means"),
        (b"port: !!int", "is not YAML: a value is not what its tag says"),
        (b"log_level: 2026-02-31", "has a value that does not exist"),
    ],
)
def test_the_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        load_settings(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml cannot be read"):
        load_settings(tmp_path / "nowhere.yaml")


def test_printed_defaults_are_the_defaults() -> None:
    assert parse_settings(yaml.safe_load(describe())) == Settings()


def test_printed_defaults_explain_each_setting() -> None:
    lines = describe().splitlines()
    for at, line in enumerate(lines):
        if not line.lstrip().startswith("#"):
            assert lines[at - 1].lstrip().startswith("# "), line


@pytest.mark.parametrize(
    "kind",
    [
        Settings,
        LockSettings,
        PrometheusSettings,
        ModelSettings,
        TlsSettings,
        ProbeSettings,
        EventSettings,
        Policy,
    ],
)
def test_each_setting_explains_itself(kind: type[msgspec.Struct]) -> None:
    texts = documented(kind)
    assert list(texts) == list(kind.__struct_fields__)
    assert all(len(text) > 20 for text in texts.values())


def test_each_setting_is_documented() -> None:
    page = (DOCS / "settings.md").read_text()
    for prefix, kind in (
        ("", Settings),
        ("policy.", Policy),
        ("locks.", LockSettings),
        ("prometheus.", PrometheusSettings),
        ("model.", ModelSettings),
        ("tls.", TlsSettings),
        ("probes.", ProbeSettings),
        ("events.", EventSettings),
    ):
        for name, text in documented(kind).items():
            default = getattr(kind(), name)
            if not isinstance(default, msgspec.Struct):
                shown = msgspec.json.encode(default).decode()
                row = f"| `{prefix}{name}` | `{shown}` | {allowed(kind, name)} | {text} |"
                assert row in page, prefix + name


def test_each_metric_is_documented() -> None:
    page = (DOCS / "metrics.md").read_text()
    registry: prometheus_client.CollectorRegistry = Telemetry().registry
    for family in registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        assert f"| `{family.name}{suffix}` | {family.type} |" in page, family.name
        assert family.documentation in page, family.name


runner = CliRunner()


def test_the_command_prints_defaults() -> None:
    result = runner.invoke(app, ["--print-defaults"])
    assert result.exit_code == 0
    assert result.stdout == describe()


def test_the_command_validates(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("port: 0\n")
    bad.write_text("prot: 0\n")
    assert runner.invoke(app, ["--validate", "--config", str(good)]).exit_code == 0
    result = runner.invoke(app, ["--validate", "--config", str(bad)])
    assert isinstance(result.exception, SettingsError)
    assert "no setting prot" in str(result.exception)


def test_the_shipped_settings_are_good() -> None:
    path = DOCS.parent / "deploy" / "extender.yaml"
    settings = load_settings(path)
    assert settings.prometheus.url
