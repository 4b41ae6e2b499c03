"""Simulated time: what is due is done in order, and the database's now() is turned to each moment before."""

import heapq
import itertools
from collections.abc import Awaitable, Callable

from tests.clock import Clock

Action = Callable[[], Awaitable[None]]


class Due:
    """Something that will happen at `at`, unless it is called off."""

    def __init__(self, at: float, action: Action) -> None:
        self.at = at
        self.action = action
        self.off = False

    def call_off(self) -> None:
        self.off = True


class Timeline:
    """`now` is in seconds from the day's beginning; time passes only in `run`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Due]] = []
        self.now = 0.0

    def after(self, delay_s: float, action: Action) -> Due:
        due = Due(self.now + delay_s, action)
        heapq.heappush(self._heap, (due.at, next(self._order), due))
        return due

    def every(self, period_s: float, action: Action) -> None:
        """Now's moment and each period after it, for as long as the timeline runs."""

        async def again() -> None:
            await action()
            self.after(period_s, again)

        self.after(0, again)

    async def run(self, ended: Callable[[], bool], until: float) -> bool:
        """Let time pass until `ended()` holds; False if it does not by `until`."""
        while not ended():
            at, _, due = heapq.heappop(self._heap)
            if at > until:
                return False
            if due.off:
                continue
            if at > self.now:
                await self._clock.advance(at - self.now)
                self.now = at
            await due.action()
        return True
