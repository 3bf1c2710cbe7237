"""`shoal version`."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed_version
from platform import python_version

from shoal.cli.options import JsonOption
from shoal.protocol.version import PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Versions:
    """What `shoal version --json` prints."""

    shoal: str
    protocol: int
    python: str


def version(as_json: JsonOption = False) -> None:
    """Print the versions of the program and of the protocol it speaks."""
    found = Versions(installed_version("shoal"), PROTOCOL_VERSION, python_version())
    print(json.dumps(asdict(found)) if as_json else f"shoal {found.shoal} (protocol {found.protocol})")
