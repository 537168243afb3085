"""The same small piece of work over and over: what the machine adds to it, it adds to others too.

python -m bench.rig.control

On a shared virtual machine a thread's CPU time also counts while the host has taken the core away,
so that work of half a millisecond now and then takes ten. Prints a line for each piece of work:
seconds of the thread's CPU time.
"""

from __future__ import annotations

import time

UNIT_SECONDS = 0.0005
PAUSE_SECONDS = 0.005
"""Half a millisecond of each five and a half: a tenth of a core."""


def main() -> None:
    """Work until somebody ends it."""
    steps = calibrate()
    while True:
        began = time.thread_time()
        work(steps)
        print(f"{time.thread_time() - began:.6f}", flush=True)
        time.sleep(PAUSE_SECONDS)


def calibrate() -> int:
    """How many steps take `UNIT_SECONDS`, by the fastest of many tries."""
    steps, fastest = 10_000, float("inf")
    for _ in range(100):
        began = time.thread_time()
        work(steps)
        fastest = min(fastest, time.thread_time() - began)
    return max(int(steps * UNIT_SECONDS / fastest), 1)


def work(steps: int) -> int:
    """Nothing useful."""
    total = 0
    for step in range(steps):
        total += step
    return total


if __name__ == "__main__":
    main()
