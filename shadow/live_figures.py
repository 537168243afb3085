"""The live shadow's running figures, from its sums."""

from __future__ import annotations

from shadow.live_state import Side, Tally


def figures(tally: Tally) -> dict[str, float]:
    """Figures by name; what has no cases yet is left out."""
    found = {
        "decisions": float(tally.decisions),
        "unscored": float(tally.unscored),
        "bound": float(tally.bound),
        "joined": float(tally.joined),
        "unknown": float(tally.unknown),
        **_share("overlap", tally.overlap, tally.decisions),
        **_share("agreement", tally.agreed, tally.bound),
    }
    for name, side in (("champion", tally.champion), ("challenger", tally.challenger)):
        found |= _side(name, side, tally.joined)
    return found


def _side(name: str, side: Side, joined: int) -> dict[str, float]:
    return {
        f"{name}_judged": float(side.judged),
        **_share(f"{name}_violation_rate", side.violated, side.judged),
        **_share(f"{name}_severity", side.severity, side.violated),
        **_share(f"{name}_offered_cores", side.offered, side.judged),
        **_share(f"{name}_excess_cores", side.excess, side.judged),
        **_share(f"{name}_regret_cores", side.regret, joined),
    }


def _share(name: str, part: float, count: int) -> dict[str, float]:
    return {name: part / count} if count else {}
