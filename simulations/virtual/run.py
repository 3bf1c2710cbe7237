"""One seed from start to end: a world, a plan of faults, a few answers at once, each token held against the oracle.

The oracle is the same model in one process. A seed decides everything: shape of the swarm, schedule, faults, prompts.
"""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

from blake3 import blake3

from shoal.client.engine.generate import Engine
from shoal.client.engine.sampler import Sampling
from shoal.client.swarm import Swarm
from shoal.client.trunk.local_experts import LocalExperts
from shoal.experts.worker import InlineWorker
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.healer import HealSettings
from shoal.protocol.events import Event
from shoal.protocol.ids import ExpertId
from shoal.simulations.virtual.drafts import Drafting, LuckyDrafter
from shoal.simulations.virtual.faults import Fault, FaultTally, draw_faults, full_disks
from shoal.simulations.virtual.injector import Injector
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.promises import Promises, check_nodes, check_tasks, check_tokens
from shoal.simulations.virtual.world import Speculation, World, open_world

LIMIT_S = 600.0
"""Virtual seconds that a run may take: a hundred times what the slowest honest one takes."""

PROMPTS = ("Once upon a time there was a little frog", "The king had three", "One day a girl found", "In the wood")
NUM_STREAMS = (1, 1, 2, 2, 3, 4)
"""Drawn from. A kernel call is shared when one runs and two more wait, and a client has one request a layer at a
holder: it takes three clients."""

DECODE_GROUPS = (1, 2, 3)
"""Drawn from, beside the other draws, so that seeds stand for what they stood for."""

LONG_PROMPT = " ".join(PROMPTS * 16)
"""463 tokens, two chunks: those who decode and each chunk are waves of one pass, which overlap."""

LONG_SHARE = 0.04
"""Seeds in which the first prompt is that one."""

DRAFTED_SHARE = 0.25
"""Seeds whose clients speculate, up to so many drafts a pass, each right with a probability that is drawn too."""

WIDEST_DRAFT = 4
LUCK = (0.0, 0.5, 0.8, 1.0)

NUM_TOKENS = 6
FAULTS_WITHIN_S = (0.05, 0.2, 0.6)
"""Faults begin while the answers grow: six tokens over four layers of 10 ms take a quarter of a second without any."""

HOUR_S = 3600.0

ANCHORED_SHARE = 0.15
"""Seeds in which an anchor is the only steady node: all others may die."""

MAX_CACHED = 12
"""Experts that it keeps in memory: fewer than a call may need, and more."""

MENDING_SHARE = 0.15
"""Seeds in which nodes take over what has one holder only, and write it to their disks."""

MENDING = HealSettings(grace_s=0.1, step_s=0.2)
MENDED_AFTER_S = 3.0
"""When the first prompt is asked once more: who takes something over has said so, waited up to 1.5 s and loaded it."""

FULL_DISK_SHARE = 0.5
"""Of those seeds: every disk is full from the beginning, for a while."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a seed stands for, before anything has run."""

    seed: int
    holdings: tuple[Holding, ...]
    steady: tuple[int, ...]
    skews_s: tuple[float, ...]
    plan: tuple[Fault, ...]
    prompts: tuple[str, ...]
    sampling: Sampling
    num_clients: int
    """The answers are theirs in turn."""
    capacities: tuple[int, ...]
    """Experts that each node may hold to mend the swarm; empty: none does."""
    anchors: Mapping[int, int]
    """Nodes that are anchors, by place, and how many experts each keeps in memory."""
    decode_groups: int
    """Groups in which the streams of a client go, if it has so many."""
    drafting: Drafting | None
    """How clients speculate; None: not at all."""


@dataclass
class Outcome:
    """What a run came to."""

    seed: int
    problem: str | None
    """None, or which promise was broken, in one line."""
    virtual_s: float = 0.0
    num_tokens: int = 0
    num_events: int = 0
    trace_hash: str = ""
    events: list[tuple[float, Event]] = field(default_factory=list, repr=False)
    promises: Promises = field(default_factory=Promises, repr=False)
    faults: FaultTally = field(default_factory=FaultTally, repr=False)
    num_drafted: int = 0
    """Tokens that a draft had named."""


class Oracle:
    """The tokens of the same prompt in one process; each is computed once."""

    def __init__(self, model: SimulatedModel) -> None:
        self._model = model
        self._known: dict[tuple[str, Sampling], list[int]] = {}

    def tokens(self, prompt: str, sampling: Sampling) -> list[int]:
        """Token ids of the answer."""
        if (prompt, sampling) not in self._known:
            self._known[prompt, sampling] = run_virtual(
                lambda: self._generate(prompt, sampling), random.Random(0), LIMIT_S
            )
        return self._known[prompt, sampling]

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the prompt itself."""
        tokenizer = self._model.opened.tokenizer
        return tokenizer.encode(prompt) if tokenizer else [len(prompt)]

    async def _generate(self, prompt: str, sampling: Sampling) -> list[int]:
        model = self._model
        experts = LocalExperts(model.store, model.backend, model.rounding, InlineWorker())
        engine = Engine(model.opened.trunk, experts, model.opened.tokenizer)
        try:
            return [token.id async for token in engine.stream(self.ids(prompt), sampling)]
        finally:
            await engine.aclose()


def draw_setup(model: SimulatedModel, seed: int) -> Setup:
    """Everything that a seed decides beforehand."""
    rng = random.Random(seed)
    num_steady, num_others = rng.randint(2, 3), rng.randint(1, 4)
    holdings = (*_full_copies(rng, model, num_steady), *_some(rng, model, num_others))
    steady_places, num_cached = range(num_steady), 0
    if rng.random() < ANCHORED_SHARE:
        steady_places, num_cached = range(len(holdings), len(holdings) + 1), rng.randint(1, MAX_CACHED)
        holdings = (*holdings, *_full_copies(rng, model, 1))
    order = rng.sample(range(len(holdings)), len(holdings))
    steady = tuple(sorted(order.index(place) for place in steady_places))
    skews_s = [rng.uniform(-30, 30) for _ in holdings]
    if rng.random() < 0.2:
        unlucky = rng.randrange(len(holdings))
        skews_s[unlucky] = 0.0 if unlucky in steady else rng.choice((-HOUR_S, HOUR_S))
    sampling = Sampling(max_tokens=NUM_TOKENS, ignore_eos=True)
    if rng.random() < 0.5:
        sampling = replace(sampling, temperature=0.8, top_p=0.95, seed=rng.randrange(4))
    prompts = rng.sample(PROMPTS, rng.choice(NUM_STREAMS))
    plan = draw_faults(rng, len(holdings), steady, rng.choice(FAULTS_WITHIN_S))
    capacities = _capacities(rng, model, holdings) if not num_cached and rng.random() < MENDING_SHARE else ()
    if capacities and rng.random() < FULL_DISK_SHARE:
        plan = [*full_disks(rng, len(holdings)), *plan]
    drafting, prompts = _ways(random.Random(f"ways {seed}"), prompts)
    return Setup(
        seed=seed,
        holdings=tuple(holdings[place] for place in order),
        steady=steady,
        skews_s=tuple(skews_s),
        plan=tuple(plan),
        prompts=tuple(prompts),
        sampling=sampling,
        num_clients=rng.randint(1, len(prompts)),
        capacities=capacities,
        anchors=dict.fromkeys(steady, num_cached) if num_cached else {},
        decode_groups=random.Random(f"groups {seed}").choice(DECODE_GROUPS),
        drafting=drafting,
    )


def _ways(rng: random.Random, prompts: Sequence[str]) -> tuple[Drafting | None, list[str]]:
    """How clients work in this run. From a generator of its own, so that all else is as if they did not."""
    drafting = None
    if rng.random() < DRAFTED_SHARE:
        drafting = Drafting(rng.randint(1, WIDEST_DRAFT), rng.choice(LUCK))
    is_long = rng.random() < LONG_SHARE
    return drafting, [LONG_PROMPT if is_long and place == 0 else prompt for place, prompt in enumerate(prompts)]


def run_seed(model: SimulatedModel, oracle: Oracle, seed: int) -> Outcome:
    """Run one seed. The same seed gives the same trace, on every machine with the same arithmetic."""
    setup = draw_setup(model, seed)
    outcome = Outcome(seed, None, promises=Promises(setup.num_clients))
    for prompt in setup.prompts:
        oracle.tokens(prompt, setup.sampling)
    schedule = random.Random(f"schedule {seed}")
    try:
        run_virtual(lambda: _run(model, oracle, setup, outcome), schedule, LIMIT_S)
    except Exception as error:  # whatever it is, it belongs to this seed, and the next one is run
        outcome.problem = "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in _leaves(error))
    trace = blake3(repr([(round(time_s, 9), event) for time_s, event in outcome.events]).encode())
    outcome.trace_hash, outcome.num_events = trace.hexdigest()[:16], len(outcome.events)
    return outcome


async def _run(model: SimulatedModel, oracle: Oracle, setup: Setup, outcome: Outcome) -> None:
    loop = asyncio.get_running_loop()
    injector = Injector(setup.plan, random.Random(f"faults {setup.seed}"))
    entropy = random.Random(f"entropy {setup.seed}")
    outcome.faults = injector.tally
    outcome.faults.num_hours_off = sum(abs(skew_s) == HOUR_S for skew_s in setup.skews_s)

    def observe(event: Event) -> None:
        outcome.events.append((loop.time(), event))
        outcome.promises.saw(event)

    async with open_world(
        model, setup.holdings, setup.skews_s, entropy, injector.delay_s, injector.tamper, injector.wrap, observe,
        setup.capacities, MENDING, num_clients=setup.num_clients, anchors=setup.anchors,
        decode_groups=setup.decode_groups, speculation=_speculation(model, oracle, setup),
    ) as world:  # fmt: skip
        faults = asyncio.create_task(injector.run(world), name="faults")
        try:
            await _all_answers(world, oracle, setup, outcome)
            if setup.capacities:
                await asyncio.sleep(max(0.0, MENDED_AFTER_S - loop.time()))
                await _answer(world.swarm, oracle, setup.prompts[0], setup.sampling, outcome)
        finally:
            outcome.virtual_s = loop.time()
            injector.look_back(world)
            faults.cancel()
            with suppress(asyncio.CancelledError):
                await faults
        check_nodes(world)
    check_tasks()


def _speculation(model: SimulatedModel, oracle: Oracle, setup: Setup) -> Speculation | None:
    """A drafter for all clients, who know what the answers will be: else none of its guesses would be right."""
    if setup.drafting is None:
        return None
    texts = [[*oracle.ids(prompt), *oracle.tokens(prompt, setup.sampling)] for prompt in setup.prompts]
    num_ids = model.opened.trunk.config.vocab_size
    rng = random.Random(f"drafts {setup.seed}")
    return Speculation(LuckyDrafter(setup.drafting.luck, texts, num_ids, rng), setup.drafting.width)


async def _all_answers(world: World, oracle: Oracle, setup: Setup, outcome: Outcome) -> None:
    async with asyncio.TaskGroup() as group:
        for place, prompt in enumerate(setup.prompts):
            swarm = world.clients[place % setup.num_clients].swarm
            group.create_task(_answer(swarm, oracle, prompt, setup.sampling, outcome))


async def _answer(swarm: Swarm, oracle: Oracle, prompt: str, sampling: Sampling, outcome: Outcome) -> None:
    expected = oracle.tokens(prompt, sampling)
    got: list[int] = []
    async with aclosing(swarm.stream(prompt, sampling)) as tokens:
        async for token in tokens:
            got.append(token.id)
            outcome.num_tokens += 1
            outcome.num_drafted += token.was_drafted
            check_tokens(got, expected[: len(got)])
            outcome.promises.check()
    check_tokens(got, expected)


def _full_copies(rng: random.Random, model: SimulatedModel, num_nodes: int) -> list[Holding]:
    """Holdings that together have every expert of every layer once or more."""
    num_experts = model.store.spec.router.num_experts
    parts: list[Holding] = [{} for _ in range(num_nodes)]
    for layer in model.layers:
        owners = [rng.randrange(num_nodes) for _ in range(num_experts)]
        for place, part in enumerate(parts):
            mine = tuple(ExpertId(expert) for expert, owner in enumerate(owners) if owner == place)
            if mine:
                part[layer] = mine
    return parts


def _some(rng: random.Random, model: SimulatedModel, num_nodes: int) -> list[Holding]:
    """Holdings of any size; often whole copies, which clients prefer to the steady nodes' parts."""
    num_experts = model.store.spec.router.num_experts
    share = [min(1.0, rng.uniform(0.2, 1.5)) for _ in range(num_nodes)]
    return [
        {
            layer: tuple(ExpertId(e) for e in range(num_experts) if e == layer % num_experts or rng.random() < share[i])
            for layer in model.layers
        }
        for i in range(num_nodes)
    ]


def _capacities(rng: random.Random, model: SimulatedModel, holdings: Sequence[Holding]) -> tuple[int, ...]:
    """What each node holds and some room besides; some have none."""
    whole = len(model.layers) * model.store.spec.router.num_experts
    return tuple(sum(map(len, holding.values())) + rng.choice((0, whole // 8, whole)) for holding in holdings)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def describe(setup: Setup) -> Sequence[str]:
    """A setup for people: what is held and what goes wrong."""
    lines = [
        f"node {place}{' (anchor)' if place in setup.anchors else ' (steady)' if place in setup.steady else ''}: "
        f"{sum(map(len, holding.values()))} experts, clock {setup.skews_s[place]:+.0f} s"
        for place, holding in enumerate(setup.holdings)
    ]
    return lines + [
        f"{fault.at_s:6.3f}-{fault.until_s:6.3f} s  node {fault.node}  {fault.kind.value}  {fault.strength:.2f}"
        for fault in setup.plan
    ]
