"""What a loop waits for between two passes: somebody knows of work, or a sweep's time has passed."""

import asyncio


class Wake:
    """Set any number of times, it ends one wait."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, at_most_s: float | None = None) -> bool:
        """Return once it is set, or after `every_s`, or `at_most_s` where that is less; whether it was set."""
        every_s = self._every_s if at_most_s is None else min(self._every_s, at_most_s)
        try:
            async with asyncio.timeout(every_s):
                await self._event.wait()
        except TimeoutError:
            pass
        was_set = self._event.is_set()
        self._event.clear()
        return was_set
