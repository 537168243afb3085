"""The preempt verb on the wire: the victims that kube-scheduler proposes, and what it gets back.

kube-scheduler sends UIDs where nodeCacheCapable is true and whole pods where it is false, and reads
UIDs in both cases. It panics at a null in the reply, fails the cycle at a node without victims, and
fails it too at a UID that is not on the node: so the reply repeats UIDs of the request only, and a
node that cannot be answered for is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from extender.wire import MAX_MESSAGE, BadRequestError, check_containers, check_nodes
from models.kube import types as kube_types

_Violations = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _MetaPod(msgspec.Struct, frozen=True, gc=False):
    uid: str = msgspec.field(name="UID", default="")


class _MetaVictims(msgspec.Struct, frozen=True):
    pods: list[_MetaPod] | None = msgspec.field(name="Pods", default=None)
    violations: _Violations | None = msgspec.field(name="NumPDBViolations", default=None)


class _FullVictims(msgspec.Struct, frozen=True):
    pods: list[kube_types.Pod] | None = msgspec.field(name="Pods", default=None)
    violations: _Violations | None = msgspec.field(name="NumPDBViolations", default=None)


class _PreemptionArgs(msgspec.Struct, frozen=True):
    pod: kube_types.Pod = msgspec.field(name="Pod")
    full: dict[str, _FullVictims | None] | None = msgspec.field(
        name="NodeNameToVictims", default=None
    )
    meta: dict[str, _MetaVictims | None] | None = msgspec.field(
        name="NodeNameToMetaVictims", default=None
    )


class _PreemptionResult(msgspec.Struct):
    victims: dict[str, _MetaVictims] = msgspec.field(name="NodeNameToMetaVictims")


class Victims(msgspec.Struct, frozen=True):
    """Who would go from a node: UIDs, each once and in the order of the request.

    violations: how many of them a disruption budget protects.
    """

    uids: tuple[str, ...]
    violations: int


class Proposal(msgspec.Struct, frozen=True):
    """A preempt request: the pod that wants room, and the victims by node.

    A node whose victims are null or none, or of which one has no UID, is not among them.
    """

    pod: kube_types.Pod
    victims: dict[str, Victims]


_args = msgspec.json.Decoder(_PreemptionArgs)
_encode = msgspec.json.Encoder().encode


def decode_preemption(body: bytes) -> Proposal:
    """Read a preempt request; a node in both maps counts with its UIDs.

    Raises:
        BadRequestError: it is no such request.
    """
    try:
        args = _args.decode(body)
    except (ValueError, RecursionError) as e:
        raise BadRequestError(f"not an ExtenderPreemptionArgs object: {e}"[:MAX_MESSAGE]) from e
    check_containers(args.pod)
    check_nodes(len(args.full or ()) + len(args.meta or ()))
    victims: dict[str, Victims] = {}
    for name, full in (args.full or {}).items():
        if full is not None:
            _propose(victims, name, map(_uid, full.pods or ()), full.violations)
    for name, meta in (args.meta or {}).items():
        if meta is not None:
            _propose(victims, name, (pod.uid for pod in meta.pods or ()), meta.violations)
    return Proposal(args.pod, victims)


def encode_preemption(victims: Mapping[str, Victims]) -> bytes:
    """The reply to preempt: the nodes that are kept, always with UIDs."""
    return _encode(
        _PreemptionResult(
            {
                name: _MetaVictims([_MetaPod(uid) for uid in of.uids], of.violations)
                for name, of in victims.items()
            }
        )
    )


def _propose(
    victims: dict[str, Victims], name: str, uids: Iterable[str], violations: int | None
) -> None:
    unique = tuple(dict.fromkeys(uids))
    if unique and all(unique):
        victims[name] = Victims(unique, violations or 0)


def _uid(pod: kube_types.Pod) -> str:
    return (pod.metadata and pod.metadata.uid) or ""
