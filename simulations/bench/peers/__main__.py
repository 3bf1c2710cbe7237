"""`python -m shoal.simulations.bench.peers`, which `make bench-peers` runs: make the environments, compare, print."""

import argparse
import json
import sys
from pathlib import Path

from shoal.simulations.bench.peers.compare import DEFAULT_TOKENS, bench_peers, table
from shoal.simulations.bench.peers.members import PEERS


def main() -> None:
    """One table, or one JSON object."""
    names = {weight_format.name.lower(): weight_format for weight_format in PEERS}
    parser = argparse.ArgumentParser(description="Our expert kernels beside kt-kernel, ggml and torch's own.")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="where the peers are installed")
    parser.add_argument("--format", action="append", choices=list(names), help="repeatable; default: all")
    parser.add_argument("--tokens", type=int, action="append", help="rows of a call; repeatable; default: 1 8 64 512")
    parser.add_argument("--threads", type=int, default=0, help="threads of every member; 0: one per core")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    formats = [names[name] for name in given.format or names]
    result = bench_peers(given.environments, formats, given.tokens or DEFAULT_TOKENS, given.threads, _report)
    print(json.dumps(result) if given.json else table(result))


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
