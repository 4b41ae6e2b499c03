"""A loop beside the daemon's work that breaks is heard of when it does, not when the daemon ends."""

import asyncio

from fusion_worker import daemon
from structlog.testing import capture_logs


async def test_a_loop_that_breaks_is_logged_at_once() -> None:
    async def breaks() -> None:
        raise LookupError("a column that is not there")

    with capture_logs() as logs:
        async with daemon._running(breaks()):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            (line,) = logs
    assert (line["event"], line["log_level"]) == ("loop_broke", "error")
    assert "breaks" in line["loop"]
    assert "a column that is not there" in line["error"]


async def test_a_loop_that_is_cancelled_at_the_end_is_not() -> None:
    with capture_logs() as logs:
        async with daemon._running(asyncio.sleep(60)):
            await asyncio.sleep(0)
    assert logs == []
