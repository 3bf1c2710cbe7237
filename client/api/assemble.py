"""What a gateway is made of, put together from a model, settings and clocks."""

from importlib.metadata import version

from shoal.client.api.grammar import Grammars
from shoal.client.api.line import Line
from shoal.client.api.metrics import Metrics
from shoal.client.api.model import Model
from shoal.client.api.sampling_defaults import SamplingDefaults
from shoal.client.api.services import Clocks, ModelCard, Services
from shoal.client.api.settings import ApiSettings


def make_services(
    model: Model, name: str, defaults: SamplingDefaults, settings: ApiSettings, clocks: Clocks, metrics: Metrics
) -> Services:
    """Everything the endpoints share. Inside the event loop."""
    card = ModelCard(name, version("shoal"), int(clocks.wall()), defaults)
    line = Line(settings.max_running, settings.max_queue, clocks.monotonic)
    metrics.watch(model, line, card.version)
    tokenizer = model.tokenizer
    grammars = Grammars(tokenizer, model.vocab_size, model.end_token_ids) if tokenizer else None
    return Services(model, card, line, metrics, clocks, grammars)
