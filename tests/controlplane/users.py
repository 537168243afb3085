"""Who may call the API server: bearer tokens, and kubeconfig files that carry them."""

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ADMIN = "admin"
SCHEDULER = "system:kube-scheduler"
CONTROLLER_MANAGER = "system:kube-controller-manager"
# What these may do comes from the roles that kube-apiserver creates for them by itself.
BUILT_IN = {ADMIN: ("system:masters",), SCHEDULER: (), CONTROLLER_MANAGER: ()}


@dataclass(frozen=True)
class User:
    """A name with its groups and the token that proves it."""

    name: str
    groups: Sequence[str] = ()
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)


def write_token_file(path: Path, users: Iterable[User]) -> None:
    """Write kube-apiserver's --token-auth-file: token, user name, uid, "groups"."""
    path.touch(mode=0o600)
    path.write_text("".join(f'{u.token},{u.name},{u.name},"{",".join(u.groups)}"\n' for u in users))


def write_kubeconfig(path: Path, server: str, ca: Path, user: User) -> None:
    """Write a kubeconfig for `user`. It is JSON, which every YAML reader reads."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": server, "certificate-authority": str(ca)}}
        ],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user.name}}],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
