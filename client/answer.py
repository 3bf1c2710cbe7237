"""An answer and what it took: the generation, and the swarm's part in it, measured while the tokens stream.

Beside `generate.py`, which knows no swarm. Knows holders and events; knows no trunk.
"""

from dataclasses import asdict, dataclass

from shoal.client.engine.generate import Generation, Recorder, Token
from shoal.client.routing.holders import Holders
from shoal.client.tally import Observers, Tally


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer and what it took."""

    generation: Generation
    """Text, tokens, times."""
    failovers: int
    """Calls that a replica answered because their first holder failed or was late."""
    holders_used: int
    bytes_sent: int
    bytes_received: int
    model_root: str

    @property
    def text(self) -> str:
        return self.generation.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.generation.token_ids

    def as_json(self) -> dict[str, object]:
        """All fields, the generation's too, as plain values of one object."""
        fields: dict[str, object] = asdict(self)
        del fields["generation"]
        finish_reason = self.generation.finish_reason.value
        return asdict(self.generation) | {"finish_reason": finish_reason} | fields


class Watch:
    """Measures one answer: times from its own making; traffic and fail-overs of the client meanwhile.

    Answers that grow at the same time share their holders, so each counts the others' traffic too.
    """

    def __init__(self, holders: Holders, observers: Observers, model_root: bytes, recorder: Recorder) -> None:
        self._holders = holders
        self._observers = observers
        self._model_root = model_root
        self._recorder = recorder
        self._traffic = holders.traffic
        self._tally = Tally()
        observers.add(self._tally)

    def add(self, token: Token) -> None:
        """Count one token of the answer."""
        self._recorder.add(token)

    def answer(self) -> Answer:
        """The answer so far; ends the measurement."""
        self._observers.remove(self._tally)
        traffic = self._holders.traffic
        return Answer(
            generation=self._recorder.generation(),
            failovers=len(self._tally.failovers),
            holders_used=len(self._tally.holders),
            bytes_sent=traffic.bytes_sent - self._traffic.bytes_sent,
            bytes_received=traffic.bytes_received - self._traffic.bytes_received,
            model_root=self._model_root.hex(),
        )
