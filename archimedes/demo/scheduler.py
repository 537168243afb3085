"""A kube-scheduler that speaks to the extender over HTTP as the real one does."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec
import numpy as np

from extender.ask import DURATION_ANNOTATION
from models.arrays import Ints
from models.errors import ArchimedesError
from shadow.kube_scheduler import NodeState, Request, pick, sample, sample_size
from shadow.result import RESOURCES

NAMESPACE = "demo"

Json = dict[str, Any]
_ASK = re.compile(r"^asks \d+m(?: for \d+ h)?, ")


def pod_object(name: str, request: Request, resource: str, duration: int, node: str = "") -> Json:
    """A pod as the API server would hold it; ``duration`` in seconds is an offline pod's."""
    amounts = {"cpu": f"{request.millicpu}m"} if request.millicpu else {}
    if request.memory:
        amounts["memory"] = str(request.memory)
    if request.extended:
        amounts[resource] = str(request.extended)
    metadata: Json = {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}"}
    if request.extended:
        metadata["annotations"] = {DURATION_ANNOTATION: f"{duration}s"}
    spec: Json = {"containers": [{"resources": {"requests": amounts, "limits": amounts}}]}
    if node:
        spec["nodeName"] = node
    return {"metadata": metadata, "spec": spec, "status": {}}


class Scheduler:
    """One scheduling cycle after the other: its own filters and scores, then the extender's.

    Fields:
        nodes: what it knows of the nodes' requests.
        latency: seconds that each pod's filter and prioritize calls took together.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        names: Sequence[str],
        nodes: NodeState,
        seed: int,
    ) -> None:
        self._url = url
        self._session = session
        self._names = tuple(names)
        self._row = {name: row for row, name in enumerate(names)}
        self.nodes = nodes
        self.latency: list[float] = []
        self._rng = np.random.default_rng([seed, 4])
        self._turn = 0

    async def schedule(self, pod: Json, request: Request) -> int | str:
        """The row of the node that the pod may be bound to, or why there is none."""
        want = sample_size(len(self.nodes))
        rows, self._turn = sample(self.nodes.fits(request), self._turn, want)
        if len(rows) == 0:
            return RESOURCES
        began = time.perf_counter()
        answer = await self._call("filter", _args(pod, [self._names[row] for row in rows]))
        if not answer["NodeNames"]:
            self.latency.append(time.perf_counter() - began)
            return _cause(answer)
        passed: list[str] = answer["NodeNames"]
        ranks: Mapping[str, int] = {}
        if len(passed) > 1:
            scored = await self._call("prioritize", _args(pod, passed))
            ranks = {host["Host"]: host["Score"] for host in scored}
        self.latency.append(time.perf_counter() - began)
        return self._best(np.array([self._row[name] for name in passed]), ranks, request)

    async def bind(self, pod: Json, row: int) -> str:
        """Let the extender bind a pod; empty, or why it could not."""
        metadata = pod["metadata"]
        body = {
            "PodName": metadata["name"],
            "PodNamespace": metadata["namespace"],
            "PodUID": metadata["uid"],
            "Node": self._names[row],
        }
        answer = await self._call("bind", body)
        return str(answer["Error"])

    def _best(self, rows: Ints, ranks: Mapping[str, int], request: Request) -> int:
        if len(rows) == 1:
            return int(rows[0])
        score = self.nodes.score(rows, request)
        score += np.array([10 * ranks.get(self._names[row], 0) for row in rows])
        return int(rows[pick(score, self._rng)])

    async def _call(self, verb: str, body: Json) -> Any:  # noqa: ANN401 - a decoded reply
        async with self._session.post(
            f"{self._url}/v1/{verb}", data=msgspec.json.encode(body)
        ) as response:
            text = await response.read()
            if response.status != 200:
                raise ArchimedesError(
                    f"the extender answered {verb} with {response.status}: {text!r}"
                )
        answer = msgspec.json.decode(text)
        if verb != "bind" and isinstance(answer, dict) and answer.get("Error"):
            raise ArchimedesError(f"{verb} was answered with the error: {answer['Error']}")
        return answer


def _args(pod: Json, names: Sequence[str]) -> Json:
    return {"Pod": pod, "Nodes": None, "NodeNames": list(names)}


def _cause(answer: Json) -> str:
    """The most frequent failure text, without the pod's own ask."""
    texts = [*answer["FailedNodes"].values(), *answer["FailedAndUnresolvableNodes"].values()]
    return _ASK.sub("", max(sorted(set(texts)), key=texts.count))
