"""Pods that had one name after another, as a StatefulSet's have: the lives of each name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.arrays import Ints
from models.grid import WINDOW
from trainer.importers.cluster_objects import PodFacts


@dataclass(frozen=True, slots=True)
class PastPod:
    """A pod that kube-state-metrics told of: when it was created (inf: not known), when last seen.

    Both in seconds since the epoch.
    """

    facts: PodFacts
    created: float
    last: float


@dataclass(frozen=True, slots=True)
class Lives:
    """The pods of one name, the oldest first; each but the newest has a number in its name.

    begins: when each was created, in seconds since the epoch, ascending; -inf for the first.
    unsplit: whether there were more that cannot be told apart.
    """

    pods: tuple[PodFacts, ...]
    begins: tuple[float, ...]
    unsplit: bool = False

    def of(self, windows: Ints) -> Ints:
        """To which pod windows belong: the newest that was created before their end.

        Args:
            windows: [W] starts, seconds since the epoch.

        Returns:
            [W] indices into ``pods``.
        """
        found: Ints = np.searchsorted(np.array(self.begins[1:]), windows + WINDOW, side="left")
        return found


def lives(now: Iterable[PodFacts], past: Mapping[str, Sequence[PastPod]]) -> dict[str, Lives]:
    """What is known of each name ``namespace/name``.

    What is used before a pod was created was used by an older one, of which nothing else may be
    known: it then counts with the newer one's requests, and its node is not known.

    Args:
        now: the pods that the API server has.
        past: those that kube-state-metrics told of, also of pods that there are now.
    """
    living = {pod.pod: pod for pod in now}
    return {
        name: _lives(name, living.get(name), past.get(name, ()))
        for name in dict.fromkeys([*past, *living])
    }


def _lives(name: str, now: PodFacts | None, past: Sequence[PastPod]) -> Lives:
    older = [pod for pod in past if now is None or pod.facts.uid not in ("", now.uid)]
    undated = sorted((pod for pod in older if pod.created == math.inf), key=lambda pod: pod.last)
    until = math.inf if now is None else now.start
    dated = sorted((pod for pod in older if pod.created < until), key=lambda pod: pod.created)
    # One without a date can only be the oldest; several cannot be told apart.
    pods = [(pod.facts, pod.created) for pod in (*undated[-1:], *dated)]
    if now is not None and now.start == math.inf:
        pods = [(now, now.start)]  # nobody can say where its time begins
    elif now is not None:
        before = replace(now, start=math.inf, end=math.inf, node="")
        pods = [*(pods or [(before, -math.inf)]), (now, now.start)]
    return Lives(
        tuple(
            replace(pod, pod=name if number == len(pods) else f"{name}#{number}")
            for number, (pod, _) in enumerate(pods, 1)
        ),
        (-math.inf, *(created for _, created in pods[1:])),
        unsplit=len(undated) > 1,
    )
