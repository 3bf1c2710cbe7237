"""Is this machine fit to be a node? Checks as pure functions over facts; each says ok, warn or fail and what to try.

`diagnosis.py` gathers the facts. A check that can not know says so and warns; it never says ok.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from shoal.protocol.net.tcp import CONGESTION_KEY, SLOW_START_KEY, TcpKernel

GIB = 2**30
RELEASED_S = 1_795_000_000.0
"""2026-11: a clock that shows less is wrong, for this program did not exist."""

MIN_FREE_DISK_BYTES = GIB
MIN_FREE_RAM_BYTES = GIB // 4
"""One DeepSeek-V3 expert in int4 is 23 MB; below this a node holds too few to be worth its place."""

MIN_FILE_DESCRIPTORS = 1024
"""512 lanes, and the rest of a process."""


class Level(StrEnum):
    """How bad."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome; `try_command` is empty when all is well."""

    check: str
    level: Level
    message: str
    try_command: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence for people, to be translated where it is shown (`tools/messages.py` gathers the first argument), and
    what is to be filled in, which is the same in every language."""

    words: str
    values: Mapping[str, str | int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.words.format(**self.values)


AS_IT_IS = "{text}"
"""A sentence that is only a value: a path, or what an error says."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found."""

    check: str
    level: Level
    said: Said
    try_command: str = ""

    def finding(self) -> Finding:
        """In English, as `--json` prints it."""
        return Finding(self.check, self.level, str(self.said), self.try_command)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on this machine. None: it can not be known here."""

    now_s: float
    is_clock_synchronized: bool | None
    settings_error: str
    """Why the settings can not be used; empty if they can."""
    settings_file: str
    runtime_dir: str
    runtime_dir_mode: int | None
    """None: not there yet."""
    key_file: str
    """Empty: a new key for each run."""
    key_file_mode: int | None
    taken_ports: tuple[int, ...]
    """Ports of the settings that another program has, while no node of ours runs."""
    host: str
    local_addresses: tuple[str, ...]
    is_lan_wanted: bool
    lan_networks: tuple[str, ...]
    """Our addresses on the networks on which the node announces itself, `192.168.1.7/24`."""
    lan_error: str
    """Why multicast DNS can not be used; empty if it can."""
    cache_dir: str
    free_disk_bytes: int
    free_ram_bytes: int
    share_bytes: int | None
    model: str
    model_error: str
    torch_error: str
    has_native_kernels: bool
    kernel_isa: str
    p2pd_error: str
    nvidia_gpus: int
    can_torch_use_cuda: bool
    idle_only: bool
    idle_s: float | None
    on_metered: bool
    is_metered: bool | None
    tcp: TcpKernel
    own_congestion_control: str
    """What our own sockets get where they may choose; empty: not Linux."""
    max_file_descriptors: int
    is_node_running: bool
    num_missing_experts: int | None
    num_holders: int | None


def examine(facts: Facts) -> tuple[Outcome, ...]:
    """Run all checks."""
    return tuple(check(facts) for check in CHECKS)


def diagnose(facts: Facts) -> Diagnosis:
    """Run all checks; in English."""
    return Diagnosis(tuple(outcome.finding() for outcome in examine(facts)))


def check_settings(facts: Facts) -> Outcome:
    """The settings file can be read."""
    if facts.settings_error:
        return _fail("settings", _as_it_is(facts.settings_error), f"${{EDITOR:-nano}} {facts.settings_file}")
    return _ok("settings", Said("can be used"))


def check_clock(facts: Facts) -> Outcome:
    """Records carry times; a minute of difference makes ours worthless."""
    if facts.now_s < RELEASED_S:
        return _fail("clock", Said("shows a date before this program existed"), "sudo timedatectl set-ntp true")
    if facts.is_clock_synchronized is None:
        return _warn("clock", Said("nothing here says whether it is synchronized"), "timedatectl status")
    if not facts.is_clock_synchronized:
        return _warn("clock", Said("is not synchronized; records fail at 60 s off"), "sudo timedatectl set-ntp true")
    return _ok("clock", Said("synchronized"))


def check_runtime_dir(facts: Facts) -> Outcome:
    """Who can enter it can command the node."""
    if facts.runtime_dir_mode is not None and facts.runtime_dir_mode & 0o077:
        return _fail("control", _is_open(facts.runtime_dir), f"chmod 700 {facts.runtime_dir}")
    return _ok("control", Said("socket in {path}, for this user only", {"path": facts.runtime_dir}))


def check_key_file(facts: Facts) -> Outcome:
    """Who can read it can be us."""
    if facts.key_file_mode is not None and facts.key_file_mode & 0o077:
        return _fail("key", _is_open(facts.key_file), f"chmod 600 {facts.key_file}")
    key = _as_it_is(facts.key_file) if facts.key_file else Said("a new one for each run")
    return _ok("key", key)


def check_ports(facts: Facts) -> Outcome:
    """The ports of the settings are free."""
    if facts.taken_ports:
        taken = Said("other programs have the ports {ports}", {"ports": ", ".join(map(str, facts.taken_ports))})
        return _fail("ports", taken, "shoal node --port 0 --p2p-port 0")
    return _ok("ports", Said("free"))


def check_reachability(facts: Facts) -> Outcome:
    """As far as it can be known from inside."""
    if _is_private(facts.host) is None and facts.host not in ("0.0.0.0", "::"):
        return _ok("network", Said("listens on {host}", {"host": facts.host}))
    if facts.host in ("127.0.0.1", "::1", "localhost"):
        return _warn("network", Said("listens on loopback: only this machine reaches it"), "shoal node --host 0.0.0.0")
    if all(_is_private(address) is not False for address in facts.local_addresses):
        return _warn(
            "network", Said("only private addresses: the LAN reaches it, the internet only through relays (NAT)"),
            "open the node's ports in the router, or stay within the LAN",
        )  # fmt: skip
    return _ok("network", Said("has a public address; whether a firewall is before it, only others can tell"))


def check_lan(facts: Facts) -> Outcome:
    """Whether the machines of this LAN find the node without an address."""
    if not facts.is_lan_wanted:
        return _ok("lan", Said("not announced: the settings say so"))
    if not facts.lan_networks:
        return _ok("lan", Said("not announced: listens on no private IPv4 network"))
    if facts.lan_error:
        return _warn(
            "lan",
            Said("nobody finds this node by multicast DNS: {error}", {"error": facts.lan_error}),
            "shoal node --no-lan",
        )
    networks = ", ".join(facts.lan_networks)
    return _ok("lan", Said("announced on {networks}, if no firewall stops UDP port 5353", {"networks": networks}))


def check_disk(facts: Facts) -> Outcome:
    """Manifests and logs need little; a full disk needs help."""
    if facts.free_disk_bytes < MIN_FREE_DISK_BYTES:
        size = f"{facts.free_disk_bytes / 1e6:.0f} MB"
        free = Said("{size} free at {path}", {"size": size, "path": facts.cache_dir})
        return _fail("disk", free, f"du -sh {facts.cache_dir} ~/.cache/* | sort -h | tail")
    return _ok("disk", Said("{size} free", {"size": f"{facts.free_disk_bytes / 1e9:.0f} GB"}))


def check_ram(facts: Facts) -> Outcome:
    """What is to be given is there."""
    size = f"{facts.free_ram_bytes / 1e9:.1f} GB"
    free = Said("{size} free", {"size": size})
    if facts.free_ram_bytes < MIN_FREE_RAM_BYTES:
        return _fail("ram", free, "ps aux --sort=-rss | head")
    if facts.share_bytes is not None and facts.share_bytes > facts.free_ram_bytes and not facts.is_node_running:
        half = f"{max(1, facts.free_ram_bytes // 2 // 10**6)}MB"
        promised = {"size": size, "promised": f"{facts.share_bytes / 1e9:.1f} GB"}
        return _fail("ram", Said("{size} free, {promised} promised", promised), f"shoal node --share {half}")
    return _ok("ram", free)


def check_model(facts: Facts) -> Outcome:
    """The checkpoint is there and of a kind we run."""
    if facts.model_error:
        return _fail("model", _as_it_is(facts.model_error), "shoal node --model DIRECTORY")
    return _ok("model", _as_it_is(facts.model))


def check_torch(facts: Facts) -> Outcome:
    """torch can be imported."""
    if facts.torch_error:
        return _fail("torch", _as_it_is(facts.torch_error), "pip install --force-reinstall torch")
    return _ok("torch", Said("imports"))


def check_kernels(facts: Facts) -> Outcome:
    """The C++ kernels were built."""
    if not facts.has_native_kernels:
        return _warn(
            "kernels", Said("the C++ kernels were not built: four times the memory and time of published fp8 weights"),
            "sudo apt-get install g++ && pip install --force-reinstall --no-deps shoal",
        )  # fmt: skip
    return _ok("kernels", _as_it_is(f"C++, {facts.kernel_isa}"))


def check_p2pd(facts: Facts) -> Outcome:
    """The libp2p daemon of hivemind's wheel runs here."""
    if facts.p2pd_error:
        return _fail("libp2p", _as_it_is(facts.p2pd_error), "pip install --force-reinstall --no-deps hivemind")
    return _ok("libp2p", Said("p2pd is there"))


def check_gpu(facts: Facts) -> Outcome:
    """A GPU that nobody can use is worth a word."""
    if not facts.nvidia_gpus:
        return _ok("gpu", Said("none; experts run on the processor"))
    if not facts.can_torch_use_cuda:
        return _warn(
            "gpu", Said("{number} NVIDIA GPUs, but torch can not use CUDA", {"number": facts.nvidia_gpus}), "nvidia-smi"
        )
    number = {"number": facts.nvidia_gpus}
    return _ok("gpu", Said("{number} NVIDIA GPUs, CUDA works; `shoal node --kernel cuda` uses it", number))


def check_idle(facts: Facts) -> Outcome:
    """idle_only needs somebody who says when the machine is idle."""
    if facts.idle_only and facts.idle_s is None:
        return _fail(
            "idle", Said("idle_only is set and nothing says when this machine is idle"), "shoal node --no-idle-only"
        )
    return _ok("idle", Said("the session says when nobody is there") if facts.idle_only else Said("not asked for"))


def check_metered(facts: Facts) -> Outcome:
    """A node pauses on a metered connection, if somebody says that it is one."""
    if facts.on_metered:
        return _ok("metered", Said("not asked for: on_metered is set"))
    if facts.is_metered is None:
        return _warn(
            "metered", Said("nothing here says whether the connection is metered (no NetworkManager); the node works"),
            "shoal node --monthly 50GB",
        )  # fmt: skip
    if facts.is_metered:
        return _warn("metered", Said("the connection is metered: the node pauses"), "shoal node --on-metered")
    return _ok("metered", Said("the connection is not metered"))


def check_tcp(facts: Facts) -> Outcome:
    """28 KiB after a pause of a second cost 3 RTT instead of 1 where Linux restarts slowly (measured)."""
    restarts = facts.tcp.restarts_after_idle
    if restarts:
        return _warn("tcp", Said("slow start after idle: 3 RTT after a pause"), f"sudo sysctl {SLOW_START_KEY}=0")
    return _ok("tcp", Said("not Linux") if restarts is None else Said("no slow start after idle"))


def check_congestion(facts: Facts) -> Outcome:
    """An exchange should take one round trip and not more."""
    tcp, own = facts.tcp, facts.own_congestion_control
    if tcp.is_paced:
        said = Said("{name} is TCP's congestion control: a small exchange takes 1.6 round trips", _names(tcp, own))
        if own != tcp.congestion_control:
            said = Said(
                "{name} is TCP's congestion control: a small exchange through libp2p takes 1.6 round trips; our own"
                " connections choose {own}", _names(tcp, own),
            )  # fmt: skip
        return _warn("congestion", said, f"sudo sysctl {CONGESTION_KEY}={tcp.better_control}")
    return _ok("congestion", _as_it_is(tcp.congestion_control) if tcp.congestion_control else Said("not Linux"))


def _names(tcp: TcpKernel, own: str) -> dict[str, str | int]:
    return {"name": tcp.congestion_control, "own": own}


def check_files(facts: Facts) -> Outcome:
    """Every lane is a file descriptor."""
    most = Said("at most {number} open files", {"number": facts.max_file_descriptors})
    if facts.max_file_descriptors < MIN_FILE_DESCRIPTORS:
        return _warn("files", most, "ulimit -n 4096")
    return _ok("files", most)


def check_node(facts: Facts) -> Outcome:
    """A node runs."""
    if not facts.is_node_running:
        return _warn("node", Said("none runs on this machine"), "shoal node")
    return _ok("node", Said("runs"))


def check_coverage(facts: Facts) -> Outcome:
    """Every expert has a holder."""
    if facts.num_missing_experts is None:
        return _warn("coverage", Said("unknown without a node that runs"), "shoal node")
    if facts.num_missing_experts:
        missing = Said("nobody holds {number} experts", {"number": facts.num_missing_experts})
        return _fail("coverage", missing, "shoal coverage")
    return _ok("coverage", Said("every expert has a holder; {number} holders", {"number": facts.num_holders or 0}))


CHECKS: Sequence[Callable[[Facts], Outcome]] = (
    check_settings, check_clock, check_runtime_dir, check_key_file, check_ports, check_reachability, check_lan,
    check_disk, check_ram, check_model, check_torch, check_kernels, check_p2pd, check_gpu, check_idle, check_metered,
    check_tcp, check_congestion, check_files, check_node, check_coverage,
)  # fmt: skip


def _as_it_is(text: str) -> Said:
    return Said(AS_IT_IS, {"text": text})


def _is_open(path: str) -> Said:
    return Said("{path} is open to other users", {"path": path})


def _ok(check: str, said: Said) -> Outcome:
    return Outcome(check, Level.OK, said)


def _warn(check: str, said: Said, try_command: str) -> Outcome:
    return Outcome(check, Level.WARN, said, try_command)


def _fail(check: str, said: Said, try_command: str) -> Outcome:
    return Outcome(check, Level.FAIL, said, try_command)


def _is_private(address: str) -> bool | None:
    """Whether strangers on the internet can not reach this address; None: it is a name."""
    try:
        return not ip_address(address.split("%")[0]).is_global
    except ValueError:
        return None
