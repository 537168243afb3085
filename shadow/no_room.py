"""What no node had room for since anything was freed: asking again would bring the same answer."""

from __future__ import annotations

from shadow.kube_scheduler import Request


class NoRoom:
    """Requests that found no node, with their horizon and the kind of their constraints."""

    def __init__(self) -> None:
        self._refused: list[tuple[Request, int, int]] = []

    def note(self, request: Request, horizon: int, kind: int) -> None:
        """No node had room for it."""
        self._refused.append((request, horizon, kind))

    def clear(self) -> None:
        """Something was freed, so that there may be room for all again."""
        self._refused.clear()

    def covers(self, request: Request, horizon: int, kind: int) -> bool:
        """Whether what was refused asked for no more, for no longer."""
        return any(
            request.millicpu >= refused.millicpu
            and request.memory >= refused.memory
            and request.extended >= refused.extended
            and horizon >= shorter
            and kind == other
            for refused, shorter, other in self._refused
        )
