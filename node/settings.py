"""What a volunteer can set: one frozen object, made by the CLI (flag > environment > default) and passed down."""

from dataclasses import dataclass
from pathlib import Path

from shoal.experts.choose_backend import KernelChoice


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Settings of one node."""

    model: Path
    """Checkpoint directory."""

    experts: str | None = None
    """What to hold, e.g. `all`, `0-15` (of every layer), `3:0-31,4:0-31`. None: chosen by rarity within
    `share_bytes`."""

    share_bytes: int | None = None
    """Memory for experts, in bytes, when `experts` is None. None: everything, if it fits half of the free memory."""

    join: tuple[str, ...] = ()
    """Multiaddrs of peers, or an invite token. Empty: the first node of a new swarm."""

    host: str = "127.0.0.1"
    """Address to listen on. Default loopback: nothing is offered to a network unasked."""

    port: int = 0
    """TCP port of the direct channel. 0: any free one, so that two nodes never collide."""

    p2p_port: int = 0
    """TCP port of libp2p (directory and relayed channel). 0: any free one."""

    identity: Path | None = None
    """Key file (0600), created when missing. None: a new identity for this run only."""

    cache_dir: Path | None = None
    """Where manifests that we computed are kept. None: the platform's user cache."""

    threads: int = 0
    """Kernel threads. 0: half of the cores, so that the machine stays its owner's; idle threads of torch spin."""

    kernel: KernelChoice = KernelChoice.AUTO
    """What runs experts. auto: the C++ kernels where they were built, else the torch reference."""

    max_queue_macs: int = 200_000_000_000
    """Multiply-accumulates admitted and unfinished; beyond it BUSY. Default: about 4 s of a 50 GMAC/s desktop."""

    drain_grace_s: float = 5.0
    """What SIGTERM gives to requests in flight."""
