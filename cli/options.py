"""What several verbs share: sizes, token ids, data types, and the name the program was called by."""

import os
import re
import shutil
import sys
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

import typer

from shoal.client.engine.engine_settings import CHUNKS_PER_PASS

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", re.IGNORECASE)


class DTypeOption(StrEnum):
    """Arithmetic of trunk and experts."""

    FP32 = "fp32"
    BF16 = "bf16"


class KernelOption(StrEnum):
    """What runs experts: `KernelChoice`, without importing torch for `--help`."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    REFERENCE = "reference"


class TrunkFormatOption(StrEnum):
    """How the trunk's linears are held: `TrunkFormat`, without importing torch for `--help`."""

    DENSE = "dense"
    AS_PUBLISHED = "as-published"
    FP8_BLOCK = "fp8_block"
    BF16 = "bf16"
    INT8_G128 = "int8_g128"
    INT4_G32 = "int4_g32"
    INT4_G128 = "int4_g128"
    MXFP4 = "mxfp4"


NameOption = Annotated[str | None, typer.Option(help="Which node of this machine, if there are several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; docs/schemas says which.")]


class SpeculateOption(StrEnum):
    """Who guesses tokens: `Speculation`, without importing torch for `--help`."""

    OFF = "off"
    AUTO = "auto"
    MTP = "mtp"
    NGRAM = "ngram"


SpeculateFlag = Annotated[
    SpeculateOption, typer.Option(help="Guess tokens ahead, to have several verified at once; the answer is the same.")
]


class ActivationsOption(StrEnum):
    """How hidden states travel: `Activations`, without importing torch for `--help`."""

    EXACT = "exact"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    AUTO = "auto"


ActivationsFlag = Annotated[
    ActivationsOption,
    typer.Option(help="Send fewer bytes to holders and back, at a small error; auto: only over slow links."),
]


PrefillAheadFlag = Annotated[
    int,
    typer.Option(
        help="Chunks of a long prompt that are under way at a time; 1: one by one.", min=1, max=CHUNKS_PER_PASS
    ),
]


class ChannelOption(StrEnum):
    """How experts are reached."""

    DIRECT = "direct"
    LIBP2P = "libp2p"


class LanOption(StrEnum):
    """Whether a client looks for peers on the LAN: `LAN_USES`."""

    MEMBERS = "members"
    ANY = "any"
    OFF = "off"


LanUseOption = Annotated[
    LanOption, typer.Option(help="Look on the LAN: for members of our private swarm; for any open swarm too; or off.")
]


def parse_size(words: str | None) -> int | None:
    """`2GB` or `512MiB` to bytes."""
    if words is None:
        return None
    match = _SIZE.fullmatch(words.strip())
    if match is None:
        raise typer.BadParameter(f"{words!r} is no size; write e.g. 2GB or 512MiB")
    return int(Decimal(match[1]) * UNITS[(match[2] or "").upper()])


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")


def parse_duration(words: str | None) -> float | None:
    """`2h`, `1h30m` or `45s` to seconds; a plain number is refused: of what?"""
    if words is None:
        return None
    match = _DURATION.fullmatch(words.strip().lower())
    if match is None or not any(match.groups()):
        raise typer.BadParameter(f"{words!r} is no duration; write e.g. 2h, 1h30m or 45s")
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def parse_ids(words: str | None) -> list[int] | None:
    """`5,17,3` to token ids."""
    if words is None:
        return None
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{words!r} are no token ids; write e.g. 5,17,3") from None


def program() -> str:
    """What the user has to type to start us again: `shoal` if it is on the PATH, else the way that was used."""
    if shutil.which("shoal"):
        return "shoal"
    started_as_module = os.path.basename(sys.argv[0]) == "__main__.py"
    return f"{os.path.relpath(sys.executable)} -m shoal.cli" if started_as_module else os.path.relpath(sys.argv[0])
