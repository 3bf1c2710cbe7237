"""The held-out English stories, small enough to be in the installed package: what benchmarks of the model read.

The sources in `text/` stay in the repository; from them `python -m shoal.simulations.demo_model.held_out` writes the
file that this module reads. Stories are CC-BY; every record keeps author, translator, licence and source, and
ATTRIBUTION.md names them.
"""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

from shoal.simulations.demo_model.corpus import Document, load, split

HELD_OUT_FILE = Path(__file__).parent / "held_out_en.jsonl.gz"
LANGUAGE = "en"


def held_out_stories(path: Path = HELD_OUT_FILE) -> list[Document]:
    """Every English story that the demonstration model has not read, in the order of the sources."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [Document(**json.loads(line)) for line in lines]


def choose(documents: list[Document]) -> list[Document]:
    """The documents of all sources that belong into the file."""
    return [d for d in split(documents)[1] if d.kind == "story" and d.language == LANGUAGE]


def write(documents: list[Document], path: Path = HELD_OUT_FILE) -> None:
    """The same documents give the same bytes."""
    lines = "".join(json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    write(choose(load()))
