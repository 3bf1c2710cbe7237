"""One RPC server of llama.cpp, which ends with its parent: rpc_server BINARY HOST PORT. Runs in its environment."""

import os
import sys

from shoal.simulations.bench.peers.worker import end_with_parent


def main() -> None:
    """Become the server: one thread, this machine's processor."""
    end_with_parent()
    binary, host, port = sys.argv[1:]
    os.execv(binary, [binary, "-H", host, "-p", port, "-t", "1", "-d", "CPU"])


if __name__ == "__main__":
    main()
