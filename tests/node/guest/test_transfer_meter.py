"""The month's transfer: counted, kept over a crash, begun anew with the month."""

from pathlib import Path

from shoal.node.guest.transfer_meter import RESERVE_BYTES, TransferMeter
from shoal.protocol.net.channel import Traffic

MB = 1_000_000


class Month:
    """A month that a test moves."""

    def __init__(self) -> None:
        self.now = "2026-11"

    def __call__(self) -> str:
        return self.now


def meter_of(path: Path, traffic: Traffic | None = None, month: Month | None = None, cap: int | None = None):
    return TransferMeter(path / "node.transfer.json", traffic or Traffic(), month or Month(), cap)


def test_both_directions_count_and_a_proper_end_keeps_the_exact_sum(tmp_path: Path) -> None:
    traffic = Traffic()
    meter = meter_of(tmp_path, traffic)
    traffic.bytes_sent, traffic.bytes_received = 3 * MB, 4 * MB
    meter.update(1.0)
    traffic.bytes_sent += MB
    meter.update(2.0)
    assert meter.month_bytes == 8 * MB
    meter.close()
    assert meter_of(tmp_path).month_bytes == 8 * MB


def test_after_a_crash_at_any_moment_the_count_is_never_too_low_and_at_most_a_reserve_too_high(tmp_path: Path) -> None:
    traffic = Traffic()
    meter = meter_of(tmp_path, traffic)
    for second in range(200):
        traffic.bytes_sent += MB
        meter.update(float(second))
        found = meter_of(tmp_path).month_bytes  # what a new process would read if this one died now
        assert meter.month_bytes <= found <= meter.month_bytes + RESERVE_BYTES


def test_it_writes_once_for_many_bytes(tmp_path: Path) -> None:
    traffic, path = Traffic(), tmp_path / "node.transfer.json"
    meter, written = meter_of(tmp_path, traffic), set()
    for second in range(100):
        traffic.bytes_received += MB // 10
        meter.update(float(second))
        written.add(path.read_text())
    assert len(written) <= 3


def test_a_new_month_begins_at_nothing(tmp_path: Path) -> None:
    traffic, month = Traffic(), Month()
    meter = meter_of(tmp_path, traffic, month)
    traffic.bytes_sent = 5 * MB
    meter.update(1.0)
    month.now = "2026-12"
    traffic.bytes_sent = 6 * MB
    meter.update(2.0)
    assert (meter.month, meter.month_bytes) == ("2026-12", MB)
    meter.close()
    assert meter_of(tmp_path).month_bytes == 0  # that file is of another month than this one's


def test_a_file_that_can_not_be_read_counts_as_a_month_that_is_spent(tmp_path: Path) -> None:
    (tmp_path / "node.transfer.json").write_text("{ torn")
    assert meter_of(tmp_path, cap=7 * MB).month_bytes == 7 * MB
    assert meter_of(tmp_path).month_bytes == 0


def test_rates_are_of_the_last_ten_seconds(tmp_path: Path) -> None:
    traffic = Traffic()
    meter = meter_of(tmp_path, traffic)
    for second in range(30):
        meter.update(float(second))
        traffic.bytes_sent += MB if second < 15 else 2 * MB
    assert abs(meter.rates().up - 2 * MB) < 1
    assert meter.rates().down == 0
