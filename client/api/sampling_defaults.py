"""What a request that says nothing about sampling gets: its publisher's advice, else OpenAI's defaults."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.client.text.tokenizer import GENERATION_FILE
from shoal.protocol.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """The values of one model."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class _Advice(msgspec.Struct, frozen=True):
    """What generation_config.json may say; `do_sample` false means greedy."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


def load_sampling_defaults(directory: Path) -> SamplingDefaults:
    """Read the advice of a model directory. Blocking.

    Raises:
        CheckpointError: the file can not be understood.
    """
    path = directory / GENERATION_FILE
    if not path.is_file():
        return SamplingDefaults()
    try:
        advice = msgspec.json.decode(path.read_bytes(), type=_Advice)
    except msgspec.DecodeError as error:
        raise CheckpointError(path.name, None, str(error)) from error
    known = {name: value for name, value in msgspec.structs.asdict(advice).items() if value is not None}
    is_greedy = known.pop("do_sample", True) is False
    return SamplingDefaults(**known | ({"temperature": 0.0} if is_greedy else {}))
