"""A swarm, a model and a node that stand still: fixed answers, fixed peers, a clock that only tests move."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from shoal.client.chat.backend import ChatMessage, ChatOptions, ChatPiece
from shoal.client.chat.conversations import ConversationStore
from shoal.client.routing.peers import Breaker, PeerSnapshot
from shoal.client.translate import _
from shoal.client.tui.app import ShoalApp
from shoal.client.tui.event_book import EventBook
from shoal.client.tui.preferences import Preferences
from shoal.client.tui.session import Clocks, Connection, Opener, Session, Tell
from shoal.protocol.control import LayerHolding, NodeLimits, NodeState, NodeStatus, PauseReason
from shoal.protocol.errors import NodeNotRunning, ShoalError
from shoal.protocol.events import (
    Event,
    ExpertsTimed,
    FailedOver,
    HolderJoined,
    HolderLost,
    LayerTimed,
    Observer,
    PassTaken,
    ReplyReceived,
)
from shoal.protocol.ids import ExpertId, LayerId, PeerId

NOW_S = 1_795_316_400.0
"""Unix time in these tests."""

STORY = """\
A shoal is **many small fish that move as one**. Nobody leads it:

1. each fish watches its *neighbours*,
2. keeps its distance, and turns when they turn.

```python
def turn(fish):
    return mean(neighbour.heading for neighbour in fish.near)
```

That is all, and it is enough."""

THOUGHT = "The user asks what a shoal is. A short list will do, and a few lines of code."


class Clock:
    """Seconds; moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeModel:
    """Answers with fixed pieces. While `gate` is not set, it waits before the last piece."""

    pieces: Sequence[ChatPiece] = ()
    clock: Clock = field(default_factory=Clock)
    failure: ShoalError | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[tuple[ChatMessage, ...]] = field(default_factory=list)
    options: list[ChatOptions] = field(default_factory=list)
    num_closed: int = 0
    model_name: str = "demo-stories"

    @property
    def where(self) -> str:
        """As a swarm's, in the user's language."""
        return _("swarm")

    async def stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncGenerator[ChatPiece, None]:
        self.asked.append(tuple(messages))
        self.options.append(options)
        try:
            for piece in self.pieces:
                self.clock.now += 0.05
                yield piece
            if self.failure is not None:
                raise self.failure
            await self.gate.wait()
            yield ChatPiece(finish_reason="stop")
        finally:
            self.num_closed += 1


def pieces_of(text: str, thought: str = "") -> list[ChatPiece]:
    """A thought and an answer, a word at a time."""
    said = [ChatPiece(reasoning=word + " ", num_tokens=1) for word in thought.split()]
    return said + [ChatPiece(text=word, num_tokens=1) for word in text.splitlines(keepends=True)]


def peer_id(number: int) -> PeerId:
    """A name of the right form and length."""
    letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    tail = "".join(letters[(number * 7 + i * i * 5) % len(letters)] for i in range(38))
    return PeerId("12D3KooW" + "Fish" + tail + f"{number:02d}")


def peer(number: int, layers: range, experts: range, breaker: Breaker = Breaker.CLOSED) -> PeerSnapshot:
    held = frozenset(ExpertId(expert) for expert in experts)
    is_gone = breaker is Breaker.OFFLINE
    return PeerSnapshot(
        peer=peer_id(number),
        rtt_ms=None if is_gone else 0.4 + 1.7 * number,
        version=None if is_gone else 1,
        holdings={} if is_gone else {LayerId(layer): held for layer in layers},
        failures=0 if breaker is Breaker.CLOSED else 3,
        breaker=breaker,
        retry_in_s=8.0 if breaker is Breaker.PAUSED else 0.0,
    )


@dataclass
class FakeSwarm:
    """`counts`: replicas by layer and expert."""

    counts: dict[LayerId, dict[ExpertId, int]]
    members: tuple[PeerSnapshot, ...]
    expert_bytes: int = 44_000_000

    def coverage(self) -> dict[LayerId, dict[ExpertId, int]]:
        return self.counts

    def peers(self) -> tuple[PeerSnapshot, ...]:
        return self.members


def small_swarm() -> FakeSwarm:
    """Four layers of 32 experts; layer 3 has a gap."""
    counts = {LayerId(layer): {ExpertId(e): 1 + (e * 7 + layer * 3) % 3 for e in range(32)} for layer in range(1, 5)}
    counts[LayerId(3)] |= {ExpertId(e): 0 for e in range(20, 23)}
    members = (
        peer(1, range(1, 5), range(16)),
        peer(2, range(1, 5), range(16, 32)),
        peer(3, range(1, 5), range(16), Breaker.PAUSED),
        peer(4, range(1, 5), range(16, 32), Breaker.OFFLINE),
    )
    return FakeSwarm(counts, members)


def large_swarm() -> FakeSwarm:
    """DeepSeek-V3's 58 layers of 256 experts, unevenly held."""
    counts = {
        LayerId(layer): {
            ExpertId(e): 1 + (e // 32 * 3 + layer * 5 + e * 7 // 16 + layer * e // 97) % 5 for e in range(256)
        }
        for layer in range(3, 61)
    }
    counts[LayerId(17)] |= {ExpertId(e): 0 for e in range(96, 128)}
    members = tuple(peer(n, range(3, 61), range(32 * (n % 8), 32 * (n % 8) + 32)) for n in range(24))
    return FakeSwarm(counts, members)


def healthy_swarm() -> FakeSwarm:
    """DeepSeek-V3's layers, all of them held; layer 17 has experts with a single holder."""
    swarm = large_swarm()
    for layer, counts in swarm.counts.items():
        for expert in counts:
            block = (layer * 7 + expert // 32 * 5 + (expert * layer) // 211) % 7
            counts[expert] = 2 + (block > 2) + (block > 4)
    swarm.counts[LayerId(17)] |= {ExpertId(expert): 1 for expert in range(96, 160)}
    return swarm


def status(state: NodeState = NodeState.SERVING) -> NodeStatus:
    is_paused = state is NodeState.PAUSED
    return NodeStatus(
        name="node", version="0.1.0", pid=4711, peer=peer_id(9), state=state,
        pause_reason=PauseReason.USER if is_paused else None, paused_until_s=None, started_at_s=NOW_S - 9 * 3600,
        model="DeepSeek-V3.1", model_root="ab" * 32, weight_format="fp8_block", kernel="cpu avx512",
        holding=(LayerHolding(17, "0-31,64-95"), LayerHolding(18, "0-31")), num_experts=96,
        resident_bytes=4_224_000_000,
        num_clients=3, requests_served=18_231, requests_refused=12, rows_computed=402_113, tokens_given=866.6,
        compute_s=812.0, queue_s=0.0042, bytes_up=5_812_000_000, bytes_down=5_790_000_000, up_bytes_per_s=410_000,
        down_bytes_per_s=402_000, month="2026-11", month_bytes=41_700_000_000,
        limits=NodeLimits(8_000_000_000, None, 4, 1_000_000, None, 100_000_000_000), addresses=(),
    )  # fmt: skip


@dataclass
class FakeNode:
    """`asked`: what was asked of it."""

    present: NodeStatus | None = field(default_factory=status)
    asked: list[str] = field(default_factory=list)

    async def status(self) -> NodeStatus:
        if self.present is None:
            raise NodeNotRunning("node")
        return self.present

    async def pause(self, duration_s: float | None) -> NodeStatus:
        self.asked.append(f"pause {duration_s}")
        self.present = status(NodeState.PAUSED)
        return self.present

    async def resume(self) -> NodeStatus:
        self.asked.append("resume")
        self.present = status()
        return self.present


def pass_events(number: int, layers: Sequence[LayerId], peers: Sequence[PeerId]) -> list[Event]:
    """The events of one token, different for each number and always the same."""
    events: list[Event] = []
    for layer in layers:
        slow = 1 + (layer * 7 + number * 3) % 5
        asked = peers[layer % 2 :: 2] or peers
        events += [
            ReplyReceived(each, layer, 0.0009 * slow + 0.0001 * i, 0.0001, 0.0004) for i, each in enumerate(asked)
        ]
        wire, straggling = 0.0004 * slow, 0.0002 * (slow - 1)
        total = wire + 0.0005 + straggling + 0.0001
        events.append(ExpertsTimed(layer, 1, len(asked), asked[-1], wire, 0.0001, 0.0004, straggling, 0.0, 0.0001))
        events.append(LayerTimed(number, layer, 1, 0.0006, 0.0002, total))
    events.append(PassTaken(number, 1, 0, 1, 0, 0.0004, 0.0002, 0.012 + 0.001 * (number % 4)))
    return events


def some_events(swarm: FakeSwarm) -> list[Event]:
    """Two peers join, one dies, eight tokens pass."""
    peers = [each.peer for each in swarm.members[:4]]
    layers = list(swarm.counts)
    events: list[Event] = [HolderJoined(each, 64) for each in peers]
    for number in range(8):
        events += pass_events(number, layers, peers[:2])
    died = (
        HolderLost(peers[3], "ChannelClosed"),
        FailedOver(peers[3], layers[1], (ExpertId(20),), "ChannelClosed", 0.031),
    )
    return [*events, *died]


@dataclass
class World:
    """An application and what it is connected to."""

    app: ShoalApp
    model: FakeModel
    swarm: FakeSwarm | None
    node: FakeNode
    clock: Clock

    @property
    def session(self) -> Session:
        return self.app.session

    def opener(self) -> Opener:
        @asynccontextmanager
        async def opener(observe: Observer, tell: Tell) -> AsyncIterator[Connection]:
            yield Connection(self.model, self.swarm)

        return opener


def world(directory: Path, swarm: FakeSwarm | None = None, preferences: Preferences | None = None) -> World:
    """An application that is connected already."""
    clock = Clock()
    model, node = FakeModel(pieces_of(STORY, THOUGHT), clock), FakeNode()
    session = Session(
        clocks=Clocks(clock, lambda: NOW_S),
        book=EventBook(clock),
        store=ConversationStore(directory / "conversations"),
        preferences=preferences or Preferences(),
        preferences_path=Path("chat.toml") if preferences is None else directory / "chat.toml",
        node=node,
        connection=Connection(model, swarm),
    )
    app = ShoalApp(session, {}, Path("~/.config/shoal/keys.toml"))
    return World(app, model, swarm, node, clock)


def with_more_peers(swarm: FakeSwarm) -> FakeSwarm:
    """Another peer joins."""
    return replace(swarm, members=(*swarm.members, peer(7, range(1, 5), range(16))))
