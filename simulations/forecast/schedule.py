"""Exchanges step by step: who works on which, for how long, and who has to wait for whom.

A list schedule: who is ready first goes first; a process does one thing at a time, and so do a link and a connection;
processes that share a machine need one of its cores, links need none. Pure, knows nothing of what the steps are.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

ENDLESS = 0
"""Cores, where every process has its own."""


@dataclass(frozen=True, slots=True)
class Step:
    """Part of an exchange: who works for how long, then nobody for a while."""

    worker: str
    busy_s: float
    then_s: float = 0.0
    """On its way to the next."""
    is_on_core: bool = True


Exchange = Sequence[Step]


@dataclass(frozen=True, slots=True)
class LayerWork:
    """A layer of one chunk of a prompt: what the trunk computes, then exchanges, all of which must end."""

    trunk: Step
    exchanges: Sequence[Exchange]


class _Workers:
    """Until when each worker and each core is busy."""

    def __init__(self, cores: int) -> None:
        self._cores = [0.0] * cores
        self._workers = dict[str, float]()

    def free_s(self, step: Step) -> float:
        """When a step may begin at the earliest."""
        core_s = min(self._cores) if step.is_on_core and self._cores else 0.0
        return max(self._workers.get(step.worker, 0.0), core_s)

    def take(self, step: Step, at_s: float) -> float:
        """Do it; returns when it is done, its way to the next included."""
        end_s = at_s + step.busy_s
        self._workers[step.worker] = end_s
        if step.is_on_core and self._cores:
            self._cores[self._cores.index(min(self._cores))] = end_s
        return end_s + step.then_s


def finish_s(exchanges: Sequence[Exchange], cores: int) -> list[float]:
    """When each exchange has ended; all begin at 0, the first before the others. cores: see `ENDLESS`."""
    workers, ends = _Workers(cores), [0.0] * len(exchanges)
    waiting = [(0.0, place, 0) for place in range(len(exchanges))]
    while waiting:
        ready_s, place, number = heapq.heappop(waiting)
        step = exchanges[place][number]
        if (free_s := workers.free_s(step)) > ready_s:  # others that can begin before it go first
            heapq.heappush(waiting, (free_s, place, number))
            continue
        ends[place] = workers.take(step, ready_s)
        if number + 1 < len(exchanges[place]):
            heapq.heappush(waiting, (ends[place], place, number + 1))
    return ends


def wavefront_s(chunks: Sequence[Sequence[LayerWork]], ahead: int, cores: int) -> float:
    """When the last of a prompt's chunks has ended (docs/adr/0028): each attends in a layer after the one before it,
    and at most `ahead` are under way. cores: see `ENDLESS`."""
    return _Wavefront([_Chunk(layers) for layers in chunks], ahead, _Workers(cores)).run()


TRUNK = -1
"""In place of the number of an exchange."""


@dataclass(slots=True)
class _Chunk:
    """How far one is."""

    layers: Sequence[LayerWork]
    attended_s: list[float] = field(default_factory=list)
    """When the trunk was done with each layer so far."""
    joined_s: list[float] = field(default_factory=list)
    """When all exchanges of each layer so far had ended."""
    num_open: int = 0
    last_s: float = 0.0
    """Exchanges of its present layer that go on, and when the last of the others ended."""
    is_asked: bool = False
    """Whether its next step on the trunk is in the queue."""

    @property
    def is_done(self) -> bool:
        return len(self.joined_s) == len(self.layers)


class _Wavefront:
    """Chunks on their way through the layers."""

    def __init__(self, chunks: Sequence[_Chunk], ahead: int, workers: _Workers) -> None:
        self._chunks = chunks
        self._ahead = ahead
        self._workers = workers
        self._waiting: list[tuple[float, int, int, int]] = []
        """When, chunk, exchange or `TRUNK`, number of the step."""

    def run(self) -> float:
        """When all is done."""
        self._ask()
        while self._waiting:
            ready_s, place, exchange, number = heapq.heappop(self._waiting)
            chunk = self._chunks[place]
            work = chunk.layers[len(chunk.joined_s)]
            step = work.trunk if exchange == TRUNK else work.exchanges[exchange][number]
            free_s = self._workers.free_s(step)
            if free_s > ready_s:
                heapq.heappush(self._waiting, (free_s, place, exchange, number))
                continue
            end_s = self._workers.take(step, ready_s)
            if exchange == TRUNK:
                self._attended(place, end_s)
            elif number + 1 < len(work.exchanges[exchange]):
                heapq.heappush(self._waiting, (end_s, place, exchange, number + 1))
            else:
                self._answered(chunk, end_s)
            self._ask()
        return max(chunk.joined_s[-1] for chunk in self._chunks)

    def _ask(self) -> None:
        """Put into the queue what the trunk may do next."""
        for place, chunk in enumerate(self._chunks):
            ready_s = None if chunk.is_asked else self._ready_s(place)
            if ready_s is not None:
                chunk.is_asked = True
                heapq.heappush(self._waiting, (ready_s, place, TRUNK, 0))

    def _ready_s(self, place: int) -> float | None:
        """When the trunk may begin with a chunk's next layer; None: not known yet, or it has none."""
        chunk, times = self._chunks[place], [0.0]
        layer = len(chunk.attended_s)
        if chunk.is_done or len(chunk.joined_s) < layer:
            return None
        times += chunk.joined_s[-1:]
        if place:
            ahead = self._chunks[place - 1].attended_s
            if len(ahead) <= layer:
                return None
            times.append(ahead[layer])
        if not layer and place >= self._ahead:
            leaver = self._chunks[place - self._ahead]
            if not leaver.is_done:
                return None
            times.append(leaver.joined_s[-1])
        return max(times)

    def _attended(self, place: int, end_s: float) -> None:
        chunk = self._chunks[place]
        exchanges = chunk.layers[len(chunk.joined_s)].exchanges
        chunk.attended_s.append(end_s)
        chunk.num_open, chunk.last_s = len(exchanges), end_s
        for exchange in range(len(exchanges)):
            heapq.heappush(self._waiting, (end_s, place, exchange, 0))

    def _answered(self, chunk: _Chunk, end_s: float) -> None:
        chunk.num_open -= 1
        chunk.last_s = max(chunk.last_s, end_s)
        if not chunk.num_open:
            chunk.joined_s.append(chunk.last_s)
            chunk.is_asked = False
