"""What every endpoint shares: the model and how it is called, the line, the counts, the clocks."""

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.client.api.errors import ApiError, bad_request
from shoal.client.api.grammar import Grammars
from shoal.client.api.line import Line
from shoal.client.api.metrics import Metrics
from shoal.client.api.model import Model
from shoal.client.api.sampling_defaults import SamplingDefaults
from shoal.client.api.shutdown import Shutdown
from shoal.client.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelCard:
    """How the model is presented."""

    name: str
    version: str
    """Of the program."""
    created: int
    """Unix seconds: when the gateway took it up."""
    defaults: SamplingDefaults


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where time and chance come from."""

    wall: Callable[[], float]
    """Unix seconds."""
    monotonic: Callable[[], float]
    """Seconds, for durations."""
    entropy: Callable[[int], bytes]
    """So many random bytes, for ids and seeds."""


@dataclass(frozen=True, slots=True)
class Services:
    """Handed to every endpoint."""

    model: Model
    card: ModelCard
    line: Line
    metrics: Metrics
    clocks: Clocks
    grammars: Grammars | None
    """None for a model without a tokenizer."""
    shutdown: Shutdown = field(default_factory=Shutdown)

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises ApiError: the model has none."""
        if self.model.tokenizer is None:
            raise bad_request("the model has no tokenizer.json; only token ids are possible", code="no_tokenizer")
        return self.model.tokenizer

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: the weights and the program; equal ones answer a seed alike."""
        return f"fp_{self.model.root[:12]}_{self.card.version}"

    def check_model(self, name: str | None) -> None:
        """Raises ApiError: 404, this gateway serves another model. No name means the one there is."""
        if name is not None and name != self.card.name:
            raise ApiError(404, "model_not_found", f"the model is called {self.card.name!r} here", "model")

    def new_id(self, prefix: str) -> str:
        """An id that nobody can guess."""
        return f"{prefix}-{self.clocks.entropy(12).hex()}"

    def new_seed(self) -> int:
        """A seed for a request that names none but wants several answers."""
        return int.from_bytes(self.clocks.entropy(7), "big")
