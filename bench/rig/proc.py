"""What the system knows of a process and those that it started: memory and CPU time."""

from __future__ import annotations

import re
from pathlib import Path

from tests.controlplane.process import children

_TICKS = 100  # to the second, on Linux


def family(pid: int) -> list[int]:
    """The process and its children."""
    return [pid, *children(pid)]


def resident(pid: int, field: str = "VmHWM") -> int:
    """Bytes of memory of a process: the highest so far, or ``VmRSS`` now."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None, status
    return int(found[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Seconds of a core that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # utime and stime
