"""Where a token begins and ends: the public client library.

    async with Swarm.join(SwarmSettings(model=Path("DIR"), join=("ADDRESS or TOKEN",))) as swarm:
        async for token in swarm.stream("Once upon a time", Sampling(max_tokens=64)):
            print(token.text, end="")

Everything a user needs is named here; everything else may change. Errors are `shoal.protocol.errors`.
"""

from shoal.client.answer import Answer
from shoal.client.constraint import TokenConstraint
from shoal.client.generate import FinishReason, Generation, Token
from shoal.client.logprobs import TokenScore
from shoal.client.sampler import Sampling
from shoal.client.settings import SwarmSettings
from shoal.client.swarm import Swarm
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
    "SwarmSettings",
    "Token",
    "TokenConstraint",
    "TokenScore",
    "WrongModel",
]
