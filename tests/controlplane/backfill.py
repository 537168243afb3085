"""History for Prometheus: CPU counters of the past as an OpenMetrics file.

The joint of history and scrapes. Series get the very labels that a scrape of kwok gives them
(`kwok.scrape_config`), so each pod has one series. kwok counts from 0 when a pod's metrics are
first scraped, so the first scraped sample lies below the last one of the history: rate() takes
that for the counter reset that it is, and misses only what was used between the two. That holds
while no other Prometheus scraped the same kwok for the same `namespace/pod` name before: kwok
remembers counters by name, even of pods that were deleted. So: history up to the present moment,
and a fresh namespace for each test.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from .objects import CONTAINER

METRIC = "container_cpu_usage_seconds_total"

PodKey = tuple[str, str]  # namespace, name
Counter = tuple[Iterable[float], Iterable[float]]  # times (Unix seconds), core-seconds so far


def cumulated(times: Iterable[float], cores: Iterable[float]) -> Counter:
    """Return the counter of a pod that uses `cores[i]` from `times[i]` until `times[i + 1]`.

    Times are Unix seconds, ascending. Raises ValueError where the two are not equally long.
    """
    at = list(times)
    used = list(cores)
    if len(at) != len(used):
        raise ValueError(f"{len(at)} times but {len(used)} usages")
    total, totals = 0.0, [0.0] if at else []
    for (start, end), rate in zip(pairwise(at), used, strict=False):
        total += (end - start) * rate
        totals.append(total)
    return at, totals


def write_openmetrics(
    path: Path,
    history: Mapping[PodKey, Counter],
    nodes: Mapping[PodKey, str],
    labels: Mapping[str, str] | None = None,
) -> Path:
    """Write `history` for `promtool tsdb create-blocks-from openmetrics`, and return `path`.

    `nodes` names the node on which each pod ran; `labels` are those given to `scrape_config`.
    Raises KeyError for a pod that has no node.
    """
    family = METRIC.removesuffix("_total")  # OpenMetrics' name of a counter
    with path.open("w") as file:
        file.write(f"# TYPE {family} counter\n")
        for key, counter in history.items():
            file.writelines(_lines(_series(key, nodes[key], labels or {}), counter))
        file.write("# EOF\n")
    return path


def _series(key: PodKey, node: str, labels: Mapping[str, str]) -> str:
    namespace, pod = key
    all_labels = {
        "job": "kubelet",
        "node": node,
        "instance": node,
        "container": CONTAINER,
        "namespace": namespace,
        "pod": pod,
        **labels,
    }
    return METRIC + "{" + ",".join(f'{k}="{v}"' for k, v in all_labels.items()) + "}"


def _lines(series: str, counter: Counter) -> Iterator[str]:
    times, totals = counter
    for time, total in zip(times, totals, strict=True):
        yield f"{series} {total:.6f} {time:.3f}\n"
