"""The pods behind the state: those that have not finished, by UID and by node."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from extender.ask import PodFacts

_REMEMBERED = 4096
"""Pods that are known to be gone, the newest: more than can be deleted while one event is late."""

ChangedPods = Mapping[str, PodFacts | None]
"""By UID the unfinished pods, bound to a node or not, that are new or have changed; None for those
that are gone."""


class PodTable:
    """Pods as the cluster reports them. Only `extender.state.State` holds a table."""

    def __init__(self) -> None:
        self._pods: dict[str, PodFacts] = {}
        self._on: dict[str, dict[str, PodFacts]] = {}
        self._changes: dict[str, PodFacts | None] = {}  # since they were asked for
        self._gone: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pods)

    def get(self, uid: str) -> PodFacts | None:
        """A pod, or None."""
        return self._pods.get(uid)

    def uids(self) -> tuple[str, ...]:
        """Of all pods."""
        return tuple(self._pods)

    def on(self, node: str) -> Mapping[str, PodFacts]:
        """The pods that are bound to a node, by UID; the node need not be known."""
        return self._on.get(node, {})

    def bound(self) -> Iterator[PodFacts]:
        """The pods that are bound to any node."""
        return (pod for pod in self._pods.values() if pod.node)

    def is_gone(self, uid: str) -> bool:
        """Whether a pod is known to be gone for good."""
        return uid in self._gone

    def outdated(self, pod: PodFacts) -> bool:
        """Whether a pod is known to be gone for good, or is known in a newer version."""
        known = self._pods.get(pod.uid)
        return self.is_gone(pod.uid) or (known is not None and pod.version < known.version)

    def put(self, pod: PodFacts) -> None:
        """Add or change a pod, which was not bound to another node before."""
        self._pods[pod.uid] = self._changes[pod.uid] = pod
        if pod.node:
            self._on.setdefault(pod.node, {})[pod.uid] = pod

    def remove(self, uid: str) -> PodFacts | None:
        """Forget a pod; what was known of it, or None."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            self._changes[uid] = None
            if pod.node:
                on_node = self._on[pod.node]
                del on_node[uid]
                if not on_node:
                    del self._on[pod.node]
        return pod

    def bury(self, uid: str) -> None:
        """A pod is gone for good: an older event that comes late does not bring it back."""
        self._gone[uid] = None
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def changes(self) -> ChangedPods:
        """What has changed since this was asked for."""
        changes, self._changes = self._changes, {}
        return changes
