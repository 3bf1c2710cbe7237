"""What a volunteer can set: frozen objects, made by the CLI (flag > environment > file > default) and passed down."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from shoal.experts.choose_backend import KernelChoice
from shoal.node.telemetry.mqtt_settings import MqttSettings
from shoal.protocol.membership import Membership

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Port = Annotated[int, Meta(ge=0, le=65535)]


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """What a node may take of its owner's machine, and when. Memory and threads are in NodeSettings."""

    up_bytes_per_s: Count | None = None
    """Bytes per second that we send, all clients together. None: no limit, right for a LAN; at home a third of the
    uplink leaves room for calls."""

    down_bytes_per_s: Count | None = None
    """Bytes per second that we receive. None: no limit."""

    lan_unlimited: bool = False
    """Neither limit nor count what the direct channel sends to and receives from private addresses (10/8, 172.16/12,
    192.168/16, fc00::/7, link-local, this machine). Default off: behind a proxy or a container's NAT strangers come
    from such addresses too, and a limit is a limit until its owner says otherwise. libp2p's traffic always counts."""

    monthly_bytes: Count | None = None
    """Bytes per calendar month, both directions; then the node pauses until the next. None: no cap."""

    disk_bytes: Count | None = None
    """What our cache and state directories may hold: pieces, packed experts, logs. Packed experts are written as far as
    there is room, and go first. None: no limit, but packed experts leave 5 GB of the disk free."""

    low_priority: bool = True
    """nice 19 and idle I/O: whatever the owner runs goes first."""

    idle_only: bool = False
    """Work only while nobody uses keyboard or mouse. Judged by input, not by load: our own load would look like use.
    Default off: at low priority a node yields anyway, and on servers nobody can tell."""

    idle_after_s: Annotated[float, Meta(ge=0)] = 300.0
    """So long after the last input the machine counts as idle: people read and think for minutes."""

    on_battery: bool = False
    """Work on battery power too. Default off: it would empty in an hour."""

    on_metered: bool = False
    """Work on a connection that NetworkManager calls metered, or guesses to be. Default off: somebody pays by the byte.
    Where nothing tells, the node works, and `shoal doctor` says that nothing tells."""

    pause_when: tuple[str, ...] = ()
    """Programs before which the node gives way while they run, e.g. `game.exe, steam_app_*`: names as the system's list
    of processes has them, with * and ?, case aside."""

    max_other_load: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Pause while other programs keep more than this share of all processors busy, 0 to 1. Our own load does not count.
    None: no limit, for at the lowest priority others go first anyway."""

    schedule: str = ""
    """Local times in which to work, e.g. `22:00-06:00` or `mon-fri 18:00-08:00, sat-sun 00:00-24:00`. Empty: always."""

    time_zone: str = ""
    """IANA name of the schedule's zone, e.g. `Africa/Nairobi`. Empty: the system's."""

    max_temperature_c: float | None = 90.0
    """Pause while the hottest processor is above this. Default: ten degrees below where most throttle themselves. None:
    no limit. Machines without a sensor never pause for it."""

    max_power_w: Annotated[float, Meta(gt=0)] | None = None
    """Pause while the machine's power sensors (hwmon) add up to more. None: no limit."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Settings of one node."""

    model: Path
    """Checkpoint directory."""

    experts: str | None = None
    """What to hold, e.g. `all`, `0-15` (of every layer), `3:0-31,4:0-31`. None: chosen by rarity within
    `share_bytes`."""

    share_bytes: Count | None = None
    """Memory for experts, in bytes. None: what `experts` takes, or half of the free memory. Beyond what `experts` names
    it is room to take over what others lose."""

    anchor: bool = False
    """Be a last resort: announce every expert of the model (or what `experts` names), read each from disk when it is
    asked for, keep the latest within `share_bytes`. Clients come when nobody else has an expert; it is slow."""

    cold_bytes: Count = 0
    """Disk for experts that are read when somebody asks for them, beside those in memory: what `experts` names beyond
    what fits, then what others have least. A last resort, as an anchor's; an eighth of `share_bytes` keeps the latest.
    0: none."""

    seed_trunk: bool = False
    """Keep the model's trunk on this disk too (DeepSeek-V3.1: 19 GB) and give it to clients that have only a token. A
    node whose model is a checkpoint directory has it and gives it anyway."""

    heal_after_s: Annotated[float, Meta(ge=0)] = 120.0
    """How long an expert has too few holders before we take it over, if there is room; older nodes first. Default: a
    restart is over by then. 0: never."""

    zone: Annotated[str, Meta(pattern="^[a-z0-9-]{0,16}$")] = ""
    """Our part of the network, by a name that its nodes agree on, e.g. za-cpt; nodes fill what their zone lacks. Empty:
    none."""

    vram_bytes: Count | None = None
    """What the process may take of a CUDA device's memory, experts and work buffers together; for `kernel` cuda.
    None: what is free."""

    join: tuple[str, ...] = ()
    """Multiaddrs of peers, or an invite token. Empty: the first node of a new swarm."""

    host: str = "127.0.0.1"
    """Address to listen on. Default loopback: nothing is offered to a network unasked."""

    port: Port = 0
    """TCP port of the direct channel. 0: any free one, so that two nodes never collide."""

    p2p_port: Port = 0
    """TCP port of libp2p (directory and relayed channel). 0: any free one."""

    lan: bool = True
    """Find peers of our swarm on the LAN by multicast DNS, and be found by them; only while `host` is a private IPv4
    address, or 0.0.0.0, and then on private networks alone. What it tells strangers: PROTOCOL.md §7.1."""

    identity: Path | None = None
    """Key file (0600), created when missing. None: a new identity for this run only."""

    cache_dir: Path | None = None
    """Where manifests that we computed are kept. None: the platform's user cache."""

    threads: Count = 0
    """Kernel threads. 0: half of the cores, so that the machine stays its owner's; idle threads of torch spin."""

    kernel: KernelChoice = KernelChoice.AUTO
    """What runs experts. auto: the C++ kernels where they were built, else the torch reference."""

    max_queue_s: Annotated[float, Meta(gt=0)] = 4.0
    """Seconds of computing that are let in and unfinished, at the speed that was measured; beyond it BUSY with the time
    until there is room. One client gets half of it at most. Default: what a client waits for a sole holder."""

    max_queue_bytes: Count = 256 * 1024 * 1024
    """Memory for requests that are let in, their rows and answers; beyond it BUSY. Default: a prefill of eight clients
    of DeepSeek-V3's size."""

    share_burst_s: Annotated[float, Meta(gt=0)] = 1.0
    """Seconds of this node that one client may take ahead of others who wait, once; then its fair share counts. One
    that is alone is never limited. Default: a prompt of some hundred tokens before somebody else's next word."""

    drain_grace_s: Annotated[float, Meta(ge=0)] = 5.0
    """What SIGTERM gives to requests in flight."""

    name: str = "node"
    """Which node of this machine this is: the name of its control socket, log and transfer count."""

    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    """Least level of what is logged: debug, info, warning or error. debug has a line per request, never its content."""

    membership: Membership | None = None
    """For the founder of a private swarm, who has no token to join by. None: that of the token in `join`, or an open
    swarm. Never in a settings file."""

    revoked: Path | None = None
    """Ids of tokens that this machine refuses, one a line, looked at in every handshake. The founder's list, which the
    swarm passes on, is kept beside it as KEY.revocations. None: nobody told us of any, nothing is kept."""

    guest: GuestSettings = field(default_factory=GuestSettings)
    """What the node may take, and when."""

    mqtt: MqttSettings | None = None
    """Where its figures go, from `[telemetry.mqtt]`. None: nowhere."""
