"""`shoal bench`: measurements that anyone can repeat."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.idle_threads import let_idle_threads_sleep
from shoal.cli.options import DTypeOption, SpeculateFlag, SpeculateOption, TrunkFormatOption, parse_ids

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine.")


@bench_app.callback()
def _bench(context: typer.Context) -> None:
    """Measure this machine."""
    if context.invoked_subcommand != "kernels":  # there torch's own linear is the baseline, at its best
        let_idle_threads_sleep(os.environ)


@bench_app.command()
def wire(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    exchanges: Annotated[int, typer.Option(help="Exchanges per size and channel.", min=10)] = 1000,
    budget: Annotated[
        bool, typer.Option("--budget", help="Where the time of a layer's exchange with two holders goes, part by part.")
    ] = False,
) -> None:
    """What an exchange costs on loopback beyond the kernel's time: both channels, several sizes."""
    with reporting_errors():
        from shoal.simulations.bench import budget as of_layer
        from shoal.simulations.bench.wire import bench_wire, table

        async def measure() -> None:
            if budget:
                result = await of_layer.bench_budget(of_layer.CHANNELS, exchanges)
                print(json.dumps(result) if as_json else of_layer.table(result))
                return
            result = await bench_wire(num_exchanges=exchanges)
            print(json.dumps(result) if as_json else table(result))

        run_coroutine(measure)


@bench_app.command()
def token(
    tokens: Annotated[int, typer.Option(help="Tokens that are measured.", min=2)] = 128,
    nodes: Annotated[int, typer.Option(help="Node processes.", min=1, max=64)] = 2,
    flame: Annotated[
        Path | None, typer.Option(help="Write a flame graph of the client to this file (SVG); folded stacks beside it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Where the time of one whole token goes, through a swarm of processes on this machine: trunk, exchanges, text."""
    with reporting_errors():
        from shoal.simulations.fork_server import start_fork_server

        context = start_fork_server()  # it imports while we do
        from shoal.simulations.bench.flame import Sampler, svg
        from shoal.simulations.bench.token_budget import bench_token, table
        from shoal.simulations.demo_model import MODEL_DIRECTORY
        from shoal.simulations.local import LocalSwarmSettings

        swarm = LocalSwarmSettings(MODEL_DIRECTORY, nodes, replicas=1)
        sampler = Sampler() if flame is not None else None

        async def measure() -> None:
            result = await bench_token(context, swarm, tokens, sampler)
            if flame is not None and sampler is not None:
                flame.write_text(svg(sampler.stacks, f"a client, commit {result['commit']}"), encoding="utf-8")
                flame.with_suffix(".folded").write_text(sampler.stacks.folded(), encoding="utf-8")
            print(json.dumps(result) if as_json else table(result))

        run_coroutine(measure)


@bench_app.command()
def start(
    experts: Annotated[int, typer.Option(help="Experts of DeepSeek-V3's size, 44 MB each.", min=1, max=256)] = 32,
    rounds: Annotated[int, typer.Option(help="Starts of each kind.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Where a node's start goes: until it is ready and has answered, with its experts packed and mapped."""
    with reporting_errors():
        from shoal.simulations.bench.start import StartSettings, bench_start, table

        result = bench_start(StartSettings(experts, rounds))
        print(json.dumps(result.as_json()) if as_json else table(result))


@bench_app.command()
def throughput(
    streams: Annotated[str, typer.Option(help="Answers at a time, e.g. 1,8,32.")] = "1,8,32",
    rtt: Annotated[float, typer.Option(help="Round trip between any two, in milliseconds.", min=0)] = 0.0,
    loss: Annotated[float, typer.Option(help="Packets lost each way, in percent.", min=0, max=90)] = 0.0,
    rate: Annotated[
        float | None, typer.Option(help="Mbit/s of every machine, each direction. Default: no limit.", min=0.01)
    ] = None,
    groups: Annotated[
        str, typer.Option(help="Groups of streams that overlap, each measured: numbers or auto, e.g. 1,2,auto.")
    ] = "auto",
    clients: Annotated[int, typer.Option(help="Clients that share the streams, in one process.", min=1, max=32)] = 1,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures every number of streams.", min=1)] = 5,
    nodes: Annotated[int, typer.Option(help="Node processes.", min=1, max=64)] = 4,
    replicas: Annotated[int, typer.Option(help="Holders of every expert.", min=1)] = 2,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt, of held-out stories.", min=1, max=1024)] = 16,
    dtype: Annotated[DTypeOption, typer.Option(help="Arithmetic.")] = DTypeOption.FP32,
    trunk_format: Annotated[
        TrunkFormatOption, typer.Option(help="How the trunk's linears are held.")
    ] = TrunkFormatOption.DENSE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What many answers at a time get in all, through a swarm of processes on this machine; and where time goes."""
    with reporting_errors():
        from shoal.simulations.fork_server import start_fork_server

        context = start_fork_server()  # it imports while we do
        from shoal.simulations.bench.throughput import ThroughputSettings, bench_throughput
        from shoal.simulations.bench.throughput_table import table
        from shoal.simulations.demo_model import MODEL_DIRECTORY
        from shoal.simulations.local import LocalSwarmSettings
        from shoal.simulations.wan.link import Link

        settings = ThroughputSettings(
            LocalSwarmSettings(MODEL_DIRECTORY, nodes, replicas),
            parse_ids(streams) or [],
            tokens,
            rounds,
            dtype.value,
            trunk_format.value,
            Link(rtt, loss / 100, rate * 1e6 / 8 if rate else None),
            clients=clients,
            prompt_tokens=prompt,
            groups=[None if word == "auto" else (parse_ids(word) or [0])[0] for word in groups.split(",")],
        )

        async def measure() -> None:
            result = await bench_throughput(context, settings)
            print(json.dumps(result) if as_json else table(result))

        run_coroutine(measure)


@bench_app.command()
def overload(
    rounds: Annotated[int, typer.Option(help="Rounds; each measures both sides of every ratio.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.", min=0.5)] = 4.0,
    hostile: Annotated[int, typer.Option(help="Hostile connections.", min=4, max=10_000)] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a node gives under ten times its load, and what hostile connections cost honest clients."""
    with reporting_errors():
        from shoal.simulations.bench.overload import OverloadSettings, bench_overload, table

        async def measure() -> None:
            result = await bench_overload(OverloadSettings(rounds, seconds, num_hostile=hostile))
            print(json.dumps(result) if as_json else table(result))

        run_coroutine(measure)


@bench_app.command()
def decode(
    rtt: Annotated[str, typer.Option(help="Round-trip times in milliseconds, e.g. 0,5,20,50.")] = "0,5,20,50",
    speculate: SpeculateFlag = SpeculateOption.AUTO,
    stories: Annotated[int, typer.Option(help="Held-out stories to continue.", min=1, max=31)] = 6,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 64,
    temperature: Annotated[float, typer.Option(help="0: greedy. Seeds are fixed.", min=0)] = 0.0,
    width: Annotated[
        int | None, typer.Option(help="Drafts of a stream in a pass. Default: as many as pay.", min=0, max=16)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Passes of drafts under way at a time. Default: as many as pay.", min=1, max=8)
    ] = None,
    repeats: Annotated[bool, typer.Option("--repeats", help="Prompts that repeat themselves.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Nodes in this process instead of namespaces: no sockets, and no root.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What guessed tokens bring at some round-trip times: tokens per pass, and tokens per second with and without."""
    with reporting_errors():
        from shoal.simulations.wan.namespace import why_no_namespaces

        context = None
        if not memory and why_no_namespaces() is None:
            from shoal.simulations.fork_server import start_fork_server

            context = start_fork_server()  # it imports while we do
        from shoal.client.speculation.choice import Speculation
        from shoal.simulations.bench.decode import DecodeSettings, bench_decode, table
        from shoal.simulations.exact_timers import exact_loop

        rtts_ms = parse_ids(rtt) or []
        settings = DecodeSettings(
            rtts_ms, Speculation(speculate.value), stories, tokens, temperature,
            threads=1, width=width, depth=depth, repeats=repeats,
        )  # fmt: skip

        async def measure() -> None:
            result = await bench_decode(settings, context=context)
            print(json.dumps(result) if as_json else table(result))

        run_coroutine(measure, None if context else exact_loop)


@bench_app.command()
def activations(
    stories: Annotated[int, typer.Option(help="Held-out stories to read.", min=1, max=32)] = 8,
    tokens: Annotated[int, typer.Option(help="Most tokens of each story.", min=2)] = 384,
    holders: Annotated[int, typer.Option(help="Holders of every layer.", min=1, max=32)] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What each format of activations costs: the model's accuracy, bytes of a token, the codec's time."""
    with reporting_errors():
        from shoal.simulations.bench.activations import ActivationsSettings, bench_activations, table

        result = bench_activations(ActivationsSettings(stories, tokens, holders))
        print(json.dumps(result) if as_json else table(result))


@bench_app.command()
def prefill(
    tokens: Annotated[int, typer.Option(help="Tokens of the prompt, 2,047 at most.", min=1)] = 2000,
    rtt: Annotated[float, typer.Option(help="Round-trip time in milliseconds.", min=0)] = 20,
    rate: Annotated[float, typer.Option(help="Rate of the client's link, each way, in Mbit/s.", min=0.1)] = 100,
    ahead: Annotated[int, typer.Option(help="Chunks under way at a time.", min=1, max=8)] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures both ways, with and without link.", min=1)] = 5,
    nodes: Annotated[int, typer.Option(help="Node processes.", min=1, max=64)] = 4,
    replicas: Annotated[int, typer.Option(help="Holders of every expert.", min=1)] = 2,
    dtype: Annotated[DTypeOption, typer.Option(help="Arithmetic.")] = DTypeOption.FP32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """A long prompt on a slow link, its chunks one by one and overlapping, against what link and computing allow."""
    with reporting_errors():
        from shoal.simulations.fork_server import start_fork_server

        context = start_fork_server()  # it imports while we do
        from shoal.simulations.bench.prefill import PrefillSettings, bench_prefill, table
        from shoal.simulations.demo_model import MODEL_DIRECTORY
        from shoal.simulations.local import LocalSwarmSettings

        swarm = LocalSwarmSettings(MODEL_DIRECTORY, nodes, replicas)
        settings = PrefillSettings(swarm, tokens, rtt, rate, rounds, ahead, dtype.value)

        async def measure() -> None:
            result = await bench_prefill(context, settings)
            print(json.dumps(result) if as_json else table(result))

        run_coroutine(measure)


@bench_app.command()
def kernels(
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="fp8_block, bf16, int8_g128 ...; repeatable. Default: all.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Rows of a call, e.g. 1,8,64,512.")] = "1,8,64,512",
    threads: Annotated[int, typer.Option(help="Threads of both sides; 0: one per core.", min=0)] = 0,
    ops: Annotated[
        list[str] | None,
        typer.Option("--op", help="expert, or a linear: q_b, o, dense_gate, shared_up; repeatable. Default: all."),
    ] = None,
    isa: Annotated[str | None, typer.Option(help="Path to force, e.g. avx2. Default: the fastest.")] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: experts on a CUDA device against torch bf16 there.")
    ] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What experts and linears of DeepSeek-V3's size cost: our kernels and torch's best bf16, side by side."""
    with reporting_errors():
        from shoal.kernels.cpu import Format, Isa
        from shoal.simulations.bench import kernels as bench
        from shoal.simulations.bench.kernel_ops import OPS

        counts = [count for count in parse_ids(tokens) or () if count > 0]
        known = {each.name.lower(): each for each in Format}
        unknown = [name for name in formats or () if name not in known]
        if unknown or not counts or (isa is not None and isa not in list(Isa)):
            raise typer.BadParameter(f"formats: {', '.join(known)}; paths: {', '.join(Isa)}; tokens, e.g. 1,8")
        if unknown_ops := [name for name in ops or () if name not in OPS]:
            raise typer.BadParameter(f"{', '.join(unknown_ops)}; operations: {', '.join(OPS)}")
        chosen = [known[name] for name in formats] if formats else bench.DEFAULT_FORMATS
        if device not in ("cpu", "cuda") or (device == "cuda" and (threads or ops or isa)):
            raise typer.BadParameter("devices: cpu, cuda; --threads, --op and --isa are of the CPU")
        if device == "cuda":
            from shoal.simulations.bench import cuda_kernels

            on_device = cuda_kernels.bench_cuda_kernels(chosen, counts)
            print(json.dumps(on_device) if as_json else cuda_kernels.table(on_device))
            return
        result = bench.bench_kernels(chosen, counts, threads, Isa(isa) if isa else None, ops or tuple(OPS))
        print(json.dumps(result) if as_json else bench.table(result))


@bench_app.command()
def trunk(
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="as-published, int4_g32 ...; repeatable. Default: fp8, int8, int4."),
    ] = None,
    tokens: Annotated[str, typer.Option(help="New tokens of a call, e.g. 1,8.")] = "1,8",
    threads: Annotated[int, typer.Option(help="Threads of both sides; 0: one per core.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a dense layer of DeepSeek-V3 costs a trunk, packed and in torch's best bf16: time, load, memory."""
    with reporting_errors():
        from shoal.client.trunk.linear_maker import TrunkFormat
        from shoal.simulations.bench.trunk_layer import DEFAULT_FORMATS, bench_trunk_layer, table

        counts = [count for count in parse_ids(tokens) or () if count > 0]
        known = [each.value for each in TrunkFormat]
        if [name for name in formats or () if name not in known] or not counts:
            raise typer.BadParameter(f"formats: {', '.join(known)}; tokens, e.g. 1,8")
        chosen = [TrunkFormat(name) for name in formats] if formats else DEFAULT_FORMATS
        result = bench_trunk_layer(chosen, counts, threads)
        print(json.dumps(result) if as_json else table(result))


@bench_app.command()
def formats(
    names: Annotated[
        list[str] | None, typer.Option("--format", help="fp8_block, bf16, int8_g128 ...; repeatable. Default: all.")
    ] = None,
    documents: Annotated[int | None, typer.Option(help="Held-out stories to score. Default: all.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What each weight format costs in accuracy: weights, the demonstration model, every path through the kernels."""
    with reporting_errors():
        from shoal.protocol.messages import WeightFormat
        from shoal.simulations.bench.formats import bench_formats, table

        known = {each.name.lower(): each for each in WeightFormat}
        if unknown := [name for name in names or () if name not in known]:
            raise typer.BadParameter(f"{', '.join(unknown)}; formats: {', '.join(known)}")
        result = bench_formats([known[name] for name in names or known], num_documents=documents)
        print(json.dumps(result) if as_json else table(result))


@bench_app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="The file to write, for `shoal simulate --virtual` and `shoal plan`.")],
    threads: Annotated[int, typer.Option(help="Threads of the kernels; 0: one per core.", min=0)] = 0,
    exchanges: Annotated[int, typer.Option(help="Exchanges per size and channel.", min=10)] = 300,
) -> None:
    """Measure what forecasts need to know of this machine: its limits, the experts' times, an exchange's own cost."""
    with reporting_errors():
        from shoal.simulations.forecast.calibrate import calibrate as measure
        from shoal.simulations.forecast.compute import calibration_text

        text = calibration_text(measure(exchanges, threads))
        out.write_text(text, encoding="utf-8")
        print(text, end="")
