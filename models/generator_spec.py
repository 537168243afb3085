"""The parameters of the generator: what a synthetic cluster and a stream of jobs are like.

The figures behind the defaults are those that published traces agree on: services request two to
six times what they use, follow the day, dip at weekends, and have bursts with heavy tails.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import SettingsError
from models.grid import WINDOW


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """What a generated cluster is like."""

    seed: int = 0
    """Of every random choice."""

    start: int = 1_736_121_600
    """Seconds since the epoch of the first window: Monday 6 January 2025, so that ten days hold a
    whole weekend. Must be a multiple of 300."""

    days: int = 10
    """Length. Ten days give a week to learn from and a weekend; usage rows grow in proportion."""

    nodes: int = 50
    """Machines of one kind. Fifty hold about 500 pods, as in the end-to-end tests."""

    node_cpu: float = 16.0
    """Allocatable cores of a node, a common size. Larger nodes even out their pods' peaks."""

    node_memory: float = 64.0
    """Allocatable GiB of a node: 4 GiB a core, the usual general-purpose ratio."""

    fill: float = 0.93
    """Share of the nodes' CPU that online pods request; higher leaves kube-scheduler no room.
    Clusters are called full at 90 to 95 %, what remains is fragments."""

    requests: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Cores that a pod may request, drawn with equal weight. The median of one core and the mean of
    1.55 give about ten pods on a node."""

    memory_per_core: tuple[float, float] = (1.0, 5.0)
    """Range of GiB that a pod requests for each core, uniform. On the average below the nodes' 4,
    so that CPU runs out first, as it does where CPU is worth reclaiming."""

    replicas: float = 5.0
    """Mean number of pods of a workload (geometric, at least 1). More replicas make a node's pods
    rise together."""

    over_request: tuple[float, float] = (2.0, 6.0)
    """Range of request / mean usage over workloads, uniform: users ask for four cores and use one.
    Higher leaves more to reclaim."""

    tide: tuple[float, float] = (0.3, 0.7)
    """Range of the daily swing as a share of the mean, uniform over workloads."""

    day_peak: tuple[float, float] = (14.0, 2.0)
    """Mean and standard deviation in hours (UTC) of when daytime workloads peak."""

    night_share: float = 0.15
    """Share of workloads that peak twelve hours off (reports, backups, other continents)."""

    weekend_dip: tuple[float, float] = (0.1, 0.5)
    """Range of the share by which daytime workloads fall on Saturday and Sunday."""

    noise: float = 0.15
    """Standard deviation of a workload's log demand around its tide: about 15 %."""

    noise_memory: float = 0.9
    """Autocorrelation of that noise between adjacent windows (AR(1)); 0.9 forgets in an hour."""

    imbalance: float = 0.15
    """Standard deviation of the log share of the load that a replica gets, and of its own noise.
    Load balancers are even to about 15 %; higher makes replicas less alike."""

    spikes_per_day: float = 0.7
    """Bursts of a workload a day (Poisson). They are what a 99 % forecast is about."""

    spike_tail: float = 2.5
    """Tail index of a burst's extra height (Lomax, as a multiple of demand, mean 2/3). Lower is
    heavier; below 2 the variance is infinite."""

    spike_minutes: float = 20.0
    """Mean time in which a burst decays (exponential)."""

    burst_limit: float = 2.0
    """CPU limit of a pod as a multiple of its request; usage is throttled there."""

    growth: float = 0.01
    """Standard deviation over workloads of the growth of demand a day."""

    rollouts_per_day: float = 0.1
    """Rollouts of a workload a day (Poisson). Each replaces every pod by a new one that has no
    history, and may move it; once in ten days is a calm release rhythm."""

    rollout_change: float = 0.1
    """Standard deviation of the log change of a workload's CPU need at a rollout."""

    warm_up: float = 1.0
    """Extra demand of a new pod in its first window as a share of its demand, halved each window
    (caches, just-in-time compilation)."""

    minute_peak: float = 0.3
    """Median of (highest minute - mean) / mean within a window, which is log-normal."""

    outages: int = 2
    """Monitoring outages: no pod has usage for 20 minutes to 3 hours."""

    missing: float = 0.002
    """Probability that a single window of a pod is missing, as after a failed scrape."""

    def __post_init__(self) -> None:
        """Refuse a cluster that could hold no pod.

        Raises:
            SettingsError: names the parameter.
        """
        smallest = min(self.requests)
        problems = {
            f"nodes is {self.nodes}; it must be 1 or more": self.nodes < 1,
            f"days is {self.days}; it must be 1 or more": self.days < 1,
            f"start is {self.start}; it must be a multiple of {WINDOW}": self.start % WINDOW != 0,
            f"fill is {self.fill}; it must be above 0 and at most 1": not 0 < self.fill <= 1,
            f"a node has less CPU or memory than the smallest request, {smallest} cores": (
                min(self.node_cpu, self.node_memory / self.memory_per_core[1]) < smallest
            ),
        }
        for problem, applies in problems.items():
            if applies:
                raise SettingsError(f"The generated cluster cannot be built: {problem}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a stream of offline jobs is like."""

    asks: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Cores of reclaimed CPU that a job may ask for."""

    ask_weights: tuple[float, ...] = (0.2, 0.25, 0.3, 0.15, 0.1)
    """How often each is asked for: most jobs are small, the mean is 1.2 cores."""

    memory_per_core: float = 1.5
    """GiB of memory for each core asked for: below the nodes' ratio, since online pods take most of
    it. Higher makes memory the limit before reclaimed CPU."""

    workloads: int = 20
    """Recurring jobs; the runs of one last alike, so a duration can be learnt from earlier runs."""

    median_minutes: float = 25.0
    """Median duration. Batch traces have medians of minutes and means of hours."""

    spread: float = 1.5
    """Standard deviation of the log duration between workloads; higher is heavier-tailed."""

    run_spread: float = 0.5
    """Standard deviation of the log duration between runs of one workload."""

    shortest_minutes: float = 2.0
    """No run is shorter: starting a pod takes a good part of that."""

    longest_hours: float = 20.0
    """No run is longer; below the longest horizon, so that every job can be promised its CPU."""

    peak_hour: float = 20.0
    """Hour (UTC) when most jobs are submitted: in the evening, for the next morning."""

    tide: float = 0.5
    """Swing of the arrival rate over the day as a share of its mean, at most 1."""
