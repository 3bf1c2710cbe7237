"""`shoal simulate validate --real`: calibrate, predict, measure, compare. Needs network namespaces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from time import perf_counter

import torch

from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.arena import num_experts_of
from shoal.simulations.bench.machine import describe_machine, git_commit, num_usable_cores
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.forecast.compute import shipped_calibration
from shoal.simulations.forecast.real.fit import Fitted, fit
from shoal.simulations.forecast.real.local_costs import CONGESTION_CONTROL, arena_settings, measure_local
from shoal.simulations.forecast.real.measure import measure_all
from shoal.simulations.forecast.real.networks import CALIBRATED, RealSetting
from shoal.simulations.forecast.real.predict import Model, plan, predict, swarm_without_network
from shoal.simulations.forecast.real.single import measure_trunk
from shoal.simulations.forecast.real.verdict import RealReport, row
from shoal.simulations.forecast.shape import FP32_BYTES, model_shape
from shoal.simulations.forecast.validate import recorded_routes
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import why_no_namespaces

Progress = Callable[[str, int, int], None]

MIN_ROUNDS = 4
"""Of the calibration, all of whose rows stand on it."""


@dataclass(frozen=True, slots=True)
class RealSettings:
    """What is compared, how often it is measured."""

    settings: Sequence[RealSetting]
    rounds: int = 3


def demo_model_for_forecasts() -> Model:
    """The demonstration model's sizes, and what its tokens choose. Blocking; runs a loop of its own.

    Raises:
        InvalidRequest: this machine or user has no network namespaces; said before anything takes time.
    """
    if reason := why_no_namespaces():
        raise InvalidRequest(f"real networks are network namespaces, and there are none: {reason}")
    torch.set_num_threads(1)  # as client and nodes do: their tensors are small, and idle threads spin
    with demo_model_in_memory() as opened:
        store = opened.store
        shape = model_shape(store.config, "demo", store.weight_format, TrunkFormat.DENSE, FP32_BYTES)
        return Model(shape, recorded_routes(opened))


async def validate_real(
    context: ForkServerContext, model: Model, settings: RealSettings, progress: Progress
) -> RealReport:
    """Everything, one after another: nothing else runs while something is measured.

    Raises:
        ShoalError: what network, nodes or swarm raise.
    """
    started, done, total = perf_counter(), 0, 1 + len(CALIBRATED) + len(settings.settings)

    def step(_: object = None) -> None:
        nonlocal done
        done += 1
        progress("measured", done, total)

    num_experts = await num_experts_of(arena_settings(CALIBRATED[0], Link()).swarm, None)
    fitted = await calibrate_here(context, model, num_experts, settings.rounds, step)
    predicted = [(predict(model, each, fitted), plan(model, each, fitted)) for each in settings.settings]
    measured = await measure_all(context, settings.settings, num_experts, settings.rounds, step)
    rows = [row(each, *said) for each, said in zip(measured, predicted, strict=True)]
    return RealReport(
        describe_machine(),
        git_commit(),
        CONGESTION_CONTROL,
        settings.rounds,
        perf_counter() - started,
        fitted.calibration,
        fitted.shared,
        tuple(rows),
    )


async def calibrate_here(
    context: ForkServerContext, model: Model, num_experts: int, rounds: int, on_done: Callable[[], None]
) -> Fitted:
    """What the forecast is told: measured without any network that is compared.

    Raises:
        ShoalError: what network, nodes or swarm raise.
    """
    trunk = await measure_trunk(MODEL_DIRECTORY, max(rounds, MIN_ROUNDS))
    on_done()
    samples = await measure_local(context, num_experts, max(rounds, MIN_ROUNDS), on_done)
    cores, base = num_usable_cores(), shipped_calibration()
    return fit(base, model.shape, cores, trunk, samples, lambda nodes, said: swarm_without_network(model, nodes, said))
