"""The forecast beside the measurement, row by row: who is how far off, and whether that is near enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shoal.simulations.forecast.compute import Calibration
from shoal.simulations.forecast.real.measure import Measured
from shoal.simulations.forecast.real.predict import Predicted
from shoal.simulations.forecast.shared_cores import SharedMachine

MODEL_WITHIN, PLAN_WITHIN = 0.15, 0.20
"""How far a forecast may be off, as a share of the measurement."""

COLUMNS = ("setting", "measured ms (range)", "cost model ms", "error", "`shoal plan` ms", "error", "limit")


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. Milliseconds of a pass (a token of each stream), or to the first token of a prompt."""

    setting: str
    measured_ms: float
    """Median of the rounds."""
    rounds_ms: tuple[float, ...]
    model_ms: float
    model_error: float
    """Relative, of the forecast."""
    plan_ms: float
    plan_error: float
    limit: str
    """What takes most of the time, as the cost model has it."""
    is_near: bool
    """Both are near enough."""


@dataclass(frozen=True, slots=True)
class RealReport:
    """What `shoal simulate validate --real` says."""

    machine: dict[str, str | int]
    commit: str
    congestion_control: str
    rounds: int
    took_s: float
    calibration: Calibration
    shared: SharedMachine
    rows: tuple[Row, ...]

    @property
    def misses(self) -> int:
        """Rows that are not near enough."""
        return sum(not row.is_near for row in self.rows)


def row(measured: Measured, model: Predicted, plan: Predicted) -> Row:
    """Compare."""
    model_error = model.seconds / measured.median_s - 1
    plan_error = plan.seconds / measured.median_s - 1
    return Row(
        measured.setting.name,
        1000 * measured.median_s,
        tuple(1000 * each for each in measured.rounds_s),
        1000 * model.seconds,
        model_error,
        1000 * plan.seconds,
        plan_error,
        model.limit,
        abs(model_error) <= MODEL_WITHIN and abs(plan_error) <= PLAN_WITHIN,
    )


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for each in rows:
        least, most = min(each.rounds_ms), max(each.rounds_ms)
        cells = (
            each.setting if each.is_near else f"**{each.setting}**",
            f"{each.measured_ms:.1f} ({least:.1f}-{most:.1f})",
            f"{each.model_ms:.1f}",
            f"{each.model_error:+.1%}",
            f"{each.plan_ms:.1f}",
            f"{each.plan_error:+.1%}",
            each.limit,
        )
        lines.append(_line(cells))
    return "\n".join(lines)


def report_lines(report: RealReport) -> Iterator[str]:
    """The whole report, as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    yield (
        f"Commit {report.commit}, {machine}; {report.congestion_control} in the namespaces, {report.rounds} rounds,"
        f" all of it in {report.took_s:.0f} s."
    )
    yield ""
    yield table(report.rows)
    yield ""
    near = len(report.rows) - report.misses
    yield (
        f"{near} of {len(report.rows)} rows are near enough: the cost model within {MODEL_WITHIN:.0%}, the planner"
        f" within {PLAN_WITHIN:.0%}; the others are in bold."
    )
    yield ""
    yield "What the forecast was told of this machine: " + ", ".join(_told(report)) + "."


def _told(report: RealReport) -> Iterator[str]:
    calibration, shared = report.calibration, report.shared
    yield f"{shared.cores} cores that all processes share"
    yield f"a layer of the trunk {calibration.layer_us:.0f} µs"
    yield f"a stream's own part of a pass {calibration.stream_us:.0f} µs"
    yield f"a row of a prompt {calibration.row_us:.0f} µs"
    yield f"attention to the context {calibration.context_factor:.1f} times as long as the machine's limits have it"
    yield f"dispatch {calibration.dispatch_us:.0f} µs a layer"
    at_holder, of_kib = calibration.holder_share, calibration.holder_share_of_kib
    yield f"an exchange {calibration.exchange_us:.0f} µs ({at_holder:.0%} at the holder)"
    yield f"and {calibration.exchange_us_per_kib:.1f} µs a KiB ({of_kib:.0%} at the holder)"
    for each in calibration.after_wait:
        yield (
            f"after {each.wait_ms:g} ms of waiting {each.layer_us:.0f} µs more a layer and {each.call_us:.0f} µs more"
            " an exchange at its holder"
        )
    yield f"the emulated network {shared.relay_frame_us:.0f} µs a frame and {shared.relay_packet_us:.1f} µs a packet"
    yield f"waking up {shared.wake_us:.0f} µs an exchange (the one constant that is fitted to a time by the clock)"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
