"""The fields that chat and text completions share, and how they become `Sampling`.

Ranges are OpenAI's where OpenAI names one; `top_k`, `min_p`, `repetition_penalty`, `ignore_eos` are vLLM's additions.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from shoal.client.api.errors import bad_request
from shoal.client.api.sampling_defaults import SamplingDefaults
from shoal.client.engine.sampler import MAX_STOP_CHARS, MAX_STOP_STRINGS, MIN_TEMPERATURE, Sampling

MAX_CHOICES = 16
"""Answers to one prompt: each is a KV cache of its own. (OpenAI: 128.)"""

SEED_RANGE = 2**63
"""Seeds are taken modulo this: OpenAI allows negative ones."""

Number = TypeVar("Number", int, float)

StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
TokenCount = Annotated[int, Meta(ge=0, le=2**31)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of request may say about choosing tokens."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[StopText], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None
    user: str | None = None

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def sampling_of(
    fields: SamplingFields, defaults: SamplingDefaults, max_tokens: int | None, top_logprobs: int
) -> Sampling:
    """The request's sampling. max_tokens: None for all that the context allows.

    Raises:
        ApiError: 400, naming the field. InvalidRequest: what `Sampling` refuses.
    """
    warmth = _or(fields.temperature, defaults.temperature)
    top_p, top_k = _or(fields.top_p, defaults.top_p), _or(fields.top_k, defaults.top_k)
    return Sampling(
        # below the least that Sampling takes nothing but the likeliest token is ever drawn
        temperature=0.0 if warmth < MIN_TEMPERATURE else warmth,
        # clients send 0 and mean "only the likeliest"
        top_p=top_p if top_p > 0 else 1.0,
        top_k=1 if top_p == 0 else max(top_k, 0),
        min_p=_or(fields.min_p, 0.0),
        repetition_penalty=_or(fields.repetition_penalty, defaults.repetition_penalty),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        logit_bias=_logit_bias(fields.logit_bias or {}),
        seed=None if fields.seed is None else fields.seed % SEED_RANGE,
        max_tokens=max_tokens,
        stop=_stop(fields.stop),
        ignore_eos=bool(fields.ignore_eos),
        top_logprobs=top_logprobs,
    )


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _logit_bias(bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if not all(token_id.isdecimal() for token_id in bias):
        raise bad_request("logit_bias: keys must be token ids", "logit_bias")
    return tuple((int(token_id), value) for token_id, value in bias.items())
