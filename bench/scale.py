"""What a replay of 1,000,000 pods on 10,000 nodes takes: python -m bench.scale [PODS NODES].

The pods last ten minutes and arrive over a day, as in `bench.replay`. What grows with the pods is
the trace itself, one row a pod and one a run; what grows with the nodes is a few arrays. With more
pods in the same cluster the memory per pod should stay, and the time per decision too.
"""

import resource
import sys
import time

from bench.replay import OPTIONS, cluster
from shadow.replay import replay_scenario
from shadow.scenario import build_scenario

PODS, NODES = 1_000_000, 10_000


def main() -> None:
    """Measure one cluster."""
    pods, nodes = (int(given) for given in sys.argv[1:3]) if len(sys.argv) > 2 else (PODS, NODES)
    trace = cluster(nodes, pods)
    read = megabytes()
    began = time.process_time()
    scenario = build_scenario(trace, OPTIONS)
    built = time.process_time() - began
    result = replay_scenario(scenario, None, policy=None, options=OPTIONS)
    seconds = time.process_time() - began
    print(
        f"{pods:,} pods on {nodes:,} nodes: {seconds:.0f} s ({built:.0f} s to prepare), "
        f"{result.decisions / (seconds - built):,.0f} decisions a second, {len(result.runs.pod):,} "
        f"runs; at most {megabytes():,.0f} MB resident, {read:,.0f} MB of it before the replay"
    )


def megabytes() -> float:
    """The most memory that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
