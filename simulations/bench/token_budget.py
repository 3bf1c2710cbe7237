"""Where the time of one whole token goes: embedding, attention, router, exchanges, head, sampling, text.

    shoal bench token

One stream decodes the demonstration model through real node processes, without guessing. The engine's own events say
what each layer took; a few functions tell their moments beside them (`marks.py`). A token is what lies between the ends
of two passes, and its parts add up to it: what no part names is said as the rest. With `--flame` the client is sampled
meanwhile (`flame.py`).
"""

import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.context import ForkServerContext
from time import perf_counter

from shoal.client import Sampling
from shoal.client.engine.generate import Engine
from shoal.client.text.detokenizer import IncrementalDetokenizer
from shoal.client.trunk.layers import Mlp
from shoal.client.trunk.model import Timing, Trunk
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import Event, ExpertsTimed, LayerTimed, PassTaken
from shoal.simulations.arena import ArenaSettings, NetworkKind, num_experts_of, open_arena
from shoal.simulations.bench.budget_node import Used, used
from shoal.simulations.bench.flame import Sampler, Stacks
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.marks import Spot, marking
from shoal.simulations.demo_model.held_out import held_out_stories
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.wan.link import Link

PROMPT_TOKENS = 64
WARM_TOKENS = 16
"""Unmeasured: connections, deadlines, packed experts."""

SPOTS = (
    Spot(Trunk, "embed", before="embed"),
    Spot(Trunk, "run_span", before="layers"),
    Spot(Mlp, "__call__", before="mlp", after="mlp done"),
    Spot(IncrementalDetokenizer, "push", before="text", after="text done"),
)

PARTS = {
    "between": "from a pass to the next: hand tokens out, choose streams",
    "prepare": "the pass begins: tensors, caches",
    "embedding": "embedding, rotations",
    "dense": "layers without experts: attention and feed-forward",
    "attention": "attention of layers with experts, to the worker and back",
    "router": "norm and router",
    "packing": "exchange: group, choose holders, write; at last the sum",
    "wire": "exchange: frames, sockets, checks on both sides, first answer",
    "queue": "exchange: in the first holder's queue, its threads and checks",
    "compute": "exchange: the first holder's arithmetic",
    "straggling": "exchange: from the first answer to the last",
    "failed": "exchange: calls that failed and were made again",
    "behind": "after the exchange: the shared expert's end, tasks",
    "head": "last norm and head",
    "sampling": "choosing the token",
    "text": "bytes to text",
    "rest": "the rest: loop, worker's turns, events",
}
"""What a token's time goes into, in the order of its journey; seconds of `Token.parts_s`."""


@dataclass(frozen=True, slots=True)
class Token:
    """One decoded token. shared_s: the shared experts' arithmetic, which runs while the exchanges wait."""

    total_s: float
    parts_s: Mapping[str, float]
    shared_s: float


@dataclass(slots=True)
class Diary:
    """What the client told, in order, and when."""

    told: list[tuple[float, Event]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.told.append((perf_counter(), event))


async def bench_token(
    context: ForkServerContext, swarm: LocalSwarmSettings, num_tokens: int, sampler: Sampler | None = None
) -> dict[str, object]:
    """Measure so many tokens of one stream; one JSON object.

    Raises:
        InvalidRequest: fewer than two tokens. ShoalError: whatever nodes, swarm or model raise.
    """
    if num_tokens < 2:
        raise InvalidRequest("expected two tokens or more")
    diary = Diary()
    async with _engine(context, swarm, diary) as (engine, prompt):
        await _decode(engine, prompt, WARM_TOKENS)
        diary.told.clear()
        before = used()
        with marking(SPOTS) as marks:
            await _decode(engine, prompt, num_tokens)
        spent, tokens = used().since(before), tokens_of(diary.told, marks.found)
        stacks = None
        if sampler is not None:
            with sampler.sampling() as stacks:
                await _decode(engine, prompt, num_tokens)
    return _report(tokens, spent, swarm, stacks)


@asynccontextmanager
async def _engine(
    context: ForkServerContext, swarm: LocalSwarmSettings, diary: Diary
) -> AsyncIterator[tuple[Engine, Sequence[int]]]:
    """A swarm of processes, an engine on it without drafts, and the beginning of a story."""
    settings = ArenaSettings(swarm, Link(), NetworkKind.LOOPBACK)
    num_experts = await num_experts_of(swarm, None)
    async with open_arena(context, settings, num_experts, lambda _: None, diary) as arena:
        shared = arena.swarm.engine
        if shared.tokenizer is None:
            raise InvalidRequest("the model has no tokenizer")
        prompt = shared.tokenizer.encode(held_out_stories()[0].plain)[:PROMPT_TOKENS]
        timing = Timing(0, perf_counter, diary)
        engine = Engine(shared.trunk, shared.routed_experts, shared.tokenizer, timing=timing)
        try:
            yield engine, prompt
        finally:
            await engine.aclose()


async def _decode(engine: Engine, prompt: Sequence[int], num_tokens: int) -> None:
    sampling = Sampling(temperature=1.0, seed=0, max_tokens=num_tokens, ignore_eos=True)
    async with aclosing(engine.stream(prompt, sampling)) as tokens:
        async for _ in tokens:
            pass


def tokens_of(told: Sequence[tuple[float, Event]], marks: Sequence[tuple[str, float]]) -> list[Token]:
    """Every decoded token but the first, which the prompt's pass made. told, marks: in the order of time."""
    ends = [(i, at, event) for i, (at, event) in enumerate(told) if isinstance(event, PassTaken)]
    tokens = list[Token]()
    for (first, began, _), (last, ended, taken) in pairwise(ends):
        inside = [(name, at) for name, at in marks if began < at <= ended]
        tokens.append(_token(began, ended, taken, [event for _, event in told[first + 1 : last]], inside))
    return tokens


def _token(
    began: float, ended: float, taken: PassTaken, events: Sequence[Event], marks: Sequence[tuple[str, float]]
) -> Token:
    parts = dict.fromkeys(PARTS, 0.0)
    moments = dict(reversed(marks))  # of each name the first
    started = ended - taken.total_s
    parts["between"] = max(0.0, started - began)
    parts["prepare"] = moments["embed"] - started
    parts["embedding"] = moments["layers"] - moments["embed"]
    parts["head"], parts["sampling"] = taken.head_s, taken.sampling_s
    layers = [event for event in events if isinstance(event, LayerTimed)]
    for layer in layers:
        parts["attention" if layer.experts_s else "dense"] += layer.attention_s
        parts["router"] += layer.route_s
        parts["behind"] += layer.experts_s
    for event in events:
        if isinstance(event, ExpertsTimed):
            for name in ("wire", "queue", "compute", "straggling", "failed"):
                parts[name] += getattr(event, f"{name}_s")
                parts["behind"] -= getattr(event, f"{name}_s")
            parts["packing"] += event.local_s
            parts["behind"] -= event.local_s
    parts["text"] = sum(_durations(marks, "text"))
    num_dense = sum(not layer.experts_s for layer in layers)
    total_s = ended - began
    parts["rest"] = total_s - sum(parts.values())
    return Token(total_s, parts, sum(_durations(marks, "mlp")[num_dense:]))


def _durations(marks: Sequence[tuple[str, float]], name: str) -> list[float]:
    begins, ends = ([at for each, at in marks if each == wanted] for wanted in (name, f"{name} done"))
    return [end - begin for begin, end in zip(begins, ends, strict=False)]


def _report(
    tokens: Sequence[Token], spent: Used, swarm: LocalSwarmSettings, stacks: Stacks | None
) -> dict[str, object]:
    sums: defaultdict[str, float] = defaultdict(float)
    for token in tokens:
        for name, seconds in token.parts_s.items():
            sums[name] += seconds
    whole_ms = sorted(1000 * token.total_s for token in tokens)
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "nodes": swarm.num_nodes,
        "replicas": swarm.replicas,
        "num_tokens": len(tokens),
        "token_ms": {
            "mean": round(statistics.fmean(whole_ms), 3),
            "p50": round(statistics.median(whole_ms), 3),
            "p10": round(whole_ms[len(whole_ms) // 10], 3),
            "p90": round(whole_ms[len(whole_ms) * 9 // 10], 3),
        },
        "parts_ms": {name: round(1000 * sums[name] / len(tokens), 3) for name in PARTS},
        "shared_experts_ms": round(1000 * statistics.fmean(token.shared_s for token in tokens), 3),
        "client_ms": {
            name: round(1000 * getattr(spent, f"{name}_s") / len(tokens), 3) for name in ("user", "system", "waited")
        },
        "samples": stacks.num_samples if stacks is not None else 0,
    }


def table(result: Mapping[str, object]) -> str:
    """The result of `bench_token` for people."""
    whole, parts, client = result["token_ms"], result["parts_ms"], result["client_ms"]
    if not isinstance(whole, dict) or not isinstance(parts, dict) or not isinstance(client, dict):
        raise TypeError("not a result of bench_token")
    lines = [
        f"{result['machine']}, commit {result['commit']}; {result['num_tokens']} tokens, {result['nodes']} nodes",
        "",
        f"{'mean of a token':64} {'ms':>8} {'%':>6}",
    ]
    lines += [f"  {PARTS[name]:62} {ms:8.3f} {100 * ms / whole['mean']:6.1f}" for name, ms in parts.items()]
    lines.append(f"  {'whole':62} {whole['mean']:8.3f} {100.0:6.1f}")
    lines.append(f"p50 {whole['p50']}, p10 {whole['p10']}, p90 {whole['p90']} ms")
    lines.append(f"the shared experts' arithmetic, while the exchanges wait: {result['shared_experts_ms']} ms")
    lines.append("the client's processor time: " + ", ".join(f"{name} {ms} ms" for name, ms in client.items()))
    return "\n".join(lines)
