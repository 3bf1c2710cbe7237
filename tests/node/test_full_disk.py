"""A full disk costs log lines and counts, and never the node: it goes on and says so once."""

import asyncio
import errno
import io
import logging
from pathlib import Path
from typing import Any

import pytest

from shoal.node.guest.decision import Sensors
from shoal.node.guest.guest import Guest
from shoal.node.guest.pause_file import PauseFile
from shoal.node.guest.transfer_meter import TransferMeter
from shoal.node.log_events import LOGGER, LogEvent, LogNotWritten, NodeResumed, TransferNotCounted, log_event
from shoal.node.logs import logging_to
from shoal.node.settings import GuestSettings
from shoal.protocol.net.channel import Traffic

FULL = Path("/dev/full")
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a disk that is always full (Linux)")


def num_of(event: type[LogEvent], caplog: pytest.LogCaptureFixture) -> int:
    return sum(isinstance(getattr(record, "event", None), event) for record in caplog.records)


@needs_full_device
def test_a_log_that_can_not_be_written_is_said_once_and_hinders_nobody() -> None:
    async def main() -> None:
        screen = io.StringIO()
        with logging_to(FULL, "info", asyncio.get_running_loop(), screen) as memory:
            for _ in range(2000):  # more than any buffer takes
                log_event(NodeResumed())
            await asyncio.sleep(0)
            events = [line.event for line in memory.last(1000)]
        assert screen.getvalue().count("log_not_written") == 1
        assert screen.getvalue().count("node_resumed") == 2000
        assert "Traceback" not in screen.getvalue()
        assert "node_resumed" in events

    asyncio.run(main())


class FullStream(io.StringIO):
    """A file on a full disk."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "no space left")


def test_a_log_is_written_again_when_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with logging_to(tmp_path / "log", "info", asyncio.get_running_loop(), io.StringIO()):
            file: Any = next(each for each in logging.getLogger().handlers if type(each).__name__ == "LogFile")
            good = file.stream
            for _ in range(2):
                file.stream = FullStream()
                log_event(NodeResumed())
                file.stream = good
                log_event(NodeResumed())
        lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2

    with caplog.at_level(logging.INFO, logger=LOGGER):
        asyncio.run(main())
    assert num_of(LogNotWritten, caplog) == 2  # once for each time


def test_a_count_that_can_not_be_written_is_said_once_and_the_node_works_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: TransferMeter, reserved_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    async def main() -> None:
        traffic = Traffic()
        meter = TransferMeter(tmp_path / "t.json", traffic, lambda: "2026-11", None)
        sensors = Sensors(1_795_348_800.0)
        guest = Guest(
            GuestSettings(), lambda now_s, month_bytes: sensors, meter, PauseFile(tmp_path / "p.json"), lambda: 0.0
        )
        monkeypatch.setattr(TransferMeter, "_write", full)
        for _ in range(3):
            traffic.bytes_sent += 10**9
            verdict = await guest.first_verdict()
            assert verdict.reason is None
        assert meter.month_bytes == 3 * 10**9

    with caplog.at_level(logging.INFO, logger=LOGGER):
        asyncio.run(main())
    assert num_of(TransferNotCounted, caplog) == 1
