"""What Prometheus may know: vLLM's names under our prefix, so that its dashboards need one replacement.

One registry per gateway, nothing global. Labels are few and bounded: no peer, no expert, nothing of a prompt.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from shoal.client.api.line import Line
from shoal.client.api.model import Model
from shoal.protocol.events import Event, FailedOver, PassTaken, ReplyReceived

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
"""Buckets for requests: a swarm in a room answers in tenths of a second, one across a continent in minutes."""

TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 4, 8)
"""Buckets for the time between two tokens."""

EXCHANGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Buckets for one exchange with a holder."""


class Metrics:
    """Counts of one gateway."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"shoal:{name}_seconds", words, buckets=buckets, registry=registry)

        self.time_to_first_token = histogram("time_to_first_token", "From request to first token.", SECONDS)
        self.inter_token_latency = histogram("inter_token_latency", "Between two tokens.", TOKEN_SECONDS)
        self.e2e_request_latency = histogram("e2e_request_latency", "From request to last token.", SECONDS)
        self.request_queue_time = histogram("request_queue_time", "From request to a place.", SECONDS)
        self.prompt_tokens = Counter("shoal:prompt_tokens", "Prompt tokens of started requests.", registry=registry)
        self.generation_tokens = Counter("shoal:generation_tokens", "Generated tokens.", registry=registry)
        self.request_success = Counter(
            "shoal:request_success", "Finished sequences.", ["finished_reason"], registry=registry
        )
        self.request_errors = Counter(
            "shoal:request_errors", "Requests refused or failed.", ["code"], registry=registry
        )
        self.aborted = Counter("shoal:request_aborts", "Requests whose client went away.", registry=registry)
        self._exchanges = histogram("expert_rpc", "One exchange with a holder.", EXCHANGE_SECONDS)
        self._draft_passes = Counter("shoal:spec_decode_num_drafts", "Passes that verified drafts.", registry=registry)
        self._drafted = Counter("shoal:spec_decode_num_draft_tokens", "Tokens drafted.", registry=registry)
        self._accepted = Counter("shoal:spec_decode_num_accepted_tokens", "Drafts that were right.", registry=registry)
        self._void = Counter("shoal:spec_decode_num_void_tokens", "Drafts thrown away unjudged.", registry=registry)
        self._failovers = Counter("shoal:failovers", "Calls that a replica had to answer.", registry=registry)

    def observe(self, event: Event) -> None:
        """Count the swarm's events: an `Observer`."""
        if isinstance(event, ReplyReceived):
            self._exchanges.observe(event.exchange_s)
        elif isinstance(event, FailedOver):
            self._failovers.inc()
        elif isinstance(event, PassTaken) and event.num_drafted:
            self._draft_passes.inc()
            self._drafted.inc(event.num_drafted)
            self._accepted.inc(event.num_accepted)
            self._void.inc(event.num_void)

    def watch(self, model: Model, line: Line, version: str) -> None:
        """Read these when asked: they are states, not events."""
        registry = self._registry
        Gauge("shoal:num_requests_running", "Sequences that generate.", registry=registry).set_function(
            lambda: line.num_running
        )
        Gauge("shoal:num_requests_waiting", "Sequences that wait.", registry=registry).set_function(
            lambda: line.num_waiting
        )
        labels = {"version": version, "model_root": model.root}
        build = Gauge("shoal:build_info", "Always 1.", list(labels), registry=registry)
        build.labels(**labels).set(1)
        registry.register(_CoverageCollector(model))

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class _CoverageCollector:
    """Coverage, counted once per scrape."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def collect(self) -> list[Metric]:
        coverage = self._model.coverage()
        ratio = GaugeMetricFamily("shoal:coverage_ratio", "Experts with a usable holder.", value=coverage.ratio)
        fewest = GaugeMetricFamily(
            "shoal:replicas_min", "Usable holders of the rarest expert.", value=coverage.min_replicas
        )
        return [ratio, fewest]


class Stopwatch:
    """The times of one sequence, told to the metrics as they come."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        """Counts from now. clock: seconds."""
        self._metrics = metrics
        self._clock = clock
        self._arrived = clock()
        self._last: float | None = None

    def placed(self, num_prompt_tokens: int) -> None:
        """It has a place."""
        self._metrics.request_queue_time.observe(self._clock() - self._arrived)
        self._metrics.prompt_tokens.inc(num_prompt_tokens)

    def token(self) -> None:
        """It has another token."""
        now = self._clock()
        self._metrics.generation_tokens.inc()
        if self._last is None:
            self._metrics.time_to_first_token.observe(now - self._arrived)
        else:
            self._metrics.inter_token_latency.observe(now - self._last)
        self._last = now

    def finished(self, reason: str) -> None:
        """It has its last token."""
        self._metrics.e2e_request_latency.observe(self._clock() - self._arrived)
        self._metrics.request_success.labels(reason).inc()
