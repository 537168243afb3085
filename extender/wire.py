"""The extender protocol: what kube-scheduler sends, and what it must get back.

Keys are the capitalised Go names (k8s.io/kube-scheduler/extender/v1 has no JSON tags). Unused
fields arrive as null; unknown ones are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from models.kube import types as kube_types

MAX_MESSAGE = 1000
"""Characters of an error text at most; kube-scheduler writes them into events."""

MAX_NODES = 100_000
"""Nodes of a request; Kubernetes is built for 5,000. They are answered for in tenths of a second,
in which nobody else is, and a body has room for millions."""

MAX_CONTAINERS = 10_000
"""Containers of a pod, for the same reason; kubelets run hundreds."""


class BadRequestError(ValueError):
    """A body that is not what the protocol says; answered with 400."""


class NodeList(msgspec.Struct, frozen=True):
    """Whole nodes, kept as they came; only sent where nodeCacheCapable is false."""

    items: list[msgspec.Raw] | None = None


class ExtenderArgs(msgspec.Struct, frozen=True, gc=False):
    """The body of filter and prioritize."""

    pod: kube_types.OfferedPod = msgspec.field(name="Pod")
    nodes: NodeList | None = msgspec.field(name="Nodes", default=None)
    node_names: list[str] | None = msgspec.field(name="NodeNames", default=None)


class BindingArgs(msgspec.Struct, frozen=True, rename="pascal"):
    """The body of bind."""

    pod_name: str
    pod_namespace: str
    pod_uid: str = msgspec.field(name="PodUID")
    node: str


class Offer(msgspec.Struct, frozen=True, gc=False):
    """The nodes of a request: their names, and the objects where the request held those."""

    names: list[str]
    objects: list[msgspec.Raw] | None


class _Items(msgspec.Struct):
    items: list[msgspec.Raw]
    metadata: dict[str, str]


class _FilterResult(msgspec.Struct):
    nodes: _Items | None = msgspec.field(name="Nodes")
    node_names: list[str] | None = msgspec.field(name="NodeNames")
    failed: Mapping[str, str] = msgspec.field(name="FailedNodes")
    unresolvable: Mapping[str, str] = msgspec.field(name="FailedAndUnresolvableNodes")
    error: str = msgspec.field(name="Error")


class _HostPriority(msgspec.Struct, gc=False):
    host: str = msgspec.field(name="Host")
    score: int = msgspec.field(name="Score")


class _BindingResult(msgspec.Struct):
    error: str = msgspec.field(name="Error")


_args = msgspec.json.Decoder(ExtenderArgs)
_binding = msgspec.json.Decoder(BindingArgs)
_node = msgspec.json.Decoder(kube_types.Node)
_encode = msgspec.json.Encoder().encode


def decode_args(body: bytes) -> ExtenderArgs:
    """Read a filter or prioritize request.

    Raises:
        BadRequestError: it is no such request.
    """
    try:
        args = _args.decode(body)
    except (ValueError, RecursionError) as e:
        raise BadRequestError(f"not an ExtenderArgs object: {e}"[:MAX_MESSAGE]) from e
    check_containers(args.pod)
    return args


def decode_binding(body: bytes) -> BindingArgs:
    """Read a bind request.

    Raises:
        BadRequestError: it is no such request.
    """
    try:
        return _binding.decode(body)
    except (ValueError, RecursionError) as e:
        raise BadRequestError(f"not an ExtenderBindingArgs object: {e}"[:MAX_MESSAGE]) from e


def offered(args: ExtenderArgs) -> Offer:
    """The nodes that a request offers; none where it names none.

    Raises:
        BadRequestError: a node object is malformed, or there are more than `MAX_NODES`.
    """
    if args.node_names is not None or args.nodes is None:
        names = args.node_names or []
        check_nodes(len(names))
        return Offer(names, None)
    objects = args.nodes.items or []
    check_nodes(len(objects))
    try:
        nodes = [_node.decode(raw) for raw in objects]
    except (ValueError, RecursionError) as e:
        raise BadRequestError(f"not a Node object: {e}"[:MAX_MESSAGE]) from e
    return Offer([(node.metadata and node.metadata.name) or "" for node in nodes], objects)


def check_nodes(count: int) -> None:
    """Raises BadRequestError where a request has more than `MAX_NODES`."""
    if count > MAX_NODES:
        raise BadRequestError(
            f"{count} nodes in one request, more than {MAX_NODES}; Kubernetes is built for 5000"
        )


def check_containers(pod: kube_types.Pod) -> None:
    """Raises BadRequestError where a pod has more than `MAX_CONTAINERS`."""
    spec = pod.spec or kube_types.PodSpec()
    count = len(spec.containers or ()) + len(spec.init_containers or ())
    if count > MAX_CONTAINERS:
        raise BadRequestError(f"the pod has {count} containers, more than {MAX_CONTAINERS}")


def encode_filter(
    offer: Offer, passed: Sequence[int], failed: Mapping[str, str], unresolvable: Mapping[str, str]
) -> bytes:
    """The reply to filter, with nodes in the form in which they came.

    Args:
        offer: the request's nodes.
        passed: positions in the offer, each name once.
        failed, unresolvable: name -> text of nodes that preemption may, or cannot, help.
    """
    names = nodes = None
    if offer.objects is None:
        names = [offer.names[position] for position in passed]
    else:
        nodes = _Items([offer.objects[position] for position in passed], {})
    return _encode(_FilterResult(nodes, names, failed, unresolvable, ""))


def encode_filter_error(text: str) -> bytes:
    """The reply to filter where there is no answer; kube-scheduler retries the pod."""
    return _encode(_FilterResult(None, [], {}, {}, text[:MAX_MESSAGE]))


def encode_prioritize(names: Sequence[str], scores: Sequence[int]) -> bytes:
    """The reply to prioritize: a bare array; the scores JSON integers; each name must be once."""
    return _encode(list(map(_HostPriority, names, scores)))


def encode_binding(error: str) -> bytes:
    """The reply to bind; an empty text means that the pod is bound."""
    return _encode(_BindingResult(error[:MAX_MESSAGE]))
