"""Draw screens of `shoal chat` into docs/, for `make screenshots`: the application itself over a swarm made up."""

import asyncio
import tempfile
from pathlib import Path

from tests.client.tui.fakes import healthy_swarm
from tests.client.tui.pictures import pictures

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHOWN = ("chat", "swarm", "latency")


def main() -> None:
    """Draw."""
    with tempfile.TemporaryDirectory() as directory:
        drawn = asyncio.run(pictures((132, 40), "shoal-dark", Path(directory), healthy_swarm()))
    for mode in SHOWN:
        (DOCS / f"{mode}.svg").write_text(drawn[mode].svg, encoding="utf-8")


if __name__ == "__main__":
    main()
