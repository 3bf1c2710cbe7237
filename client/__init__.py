"""Where a token begins and ends: the public client library.

    async with Swarm.join(SwarmSettings(model=Path("DIR"), join=("ADDRESS or TOKEN",))) as swarm:
        async for token in swarm.stream("Once upon a time", Sampling(max_tokens=64)):
            print(token.text, end="")

Everything a user needs is named here; everything else may change. Errors are `shoal.protocol.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client.answer import Answer
    from shoal.client.engine.constraint import TokenConstraint
    from shoal.client.engine.generate import FinishReason, Generation, Token
    from shoal.client.engine.logprobs import TokenScore
    from shoal.client.engine.sampler import Sampling
    from shoal.client.settings import SwarmSettings
    from shoal.client.swarm import Swarm
    from shoal.client.swarm_health import SwarmHealth
    from shoal.protocol.errors import (
        Busy,
        CheckpointError,
        ContextLengthExceeded,
        CoverageGap,
        IntegrityError,
        InvalidRequest,
        ModelNotFound,
        NoTokenAllowed,
        ShoalError,
        WrongModel,
    )

__all__ = [
    "Answer",
    "Busy",
    "CheckpointError",
    "ContextLengthExceeded",
    "CoverageGap",
    "FinishReason",
    "Generation",
    "IntegrityError",
    "InvalidRequest",
    "ModelNotFound",
    "NoTokenAllowed",
    "Sampling",
    "ShoalError",
    "Swarm",
    "SwarmHealth",
    "SwarmSettings",
    "Token",
    "TokenConstraint",
    "TokenScore",
    "WrongModel",
]

_HOMES = {
    "Answer": "answer",
    "FinishReason": "engine.generate",
    "Generation": "engine.generate",
    "Sampling": "engine.sampler",
    "Swarm": "swarm",
    "SwarmHealth": "swarm_health",
    "SwarmSettings": "settings",
    "Token": "engine.generate",
    "TokenConstraint": "engine.constraint",
    "TokenScore": "engine.logprobs",
}
"""Modules of this package by public name; the errors live in `shoal.protocol.errors`."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch takes a second, and chatting through an endpoint needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES[name]}" if name in _HOMES else "shoal.protocol.errors"
    return getattr(import_module(home), name)
