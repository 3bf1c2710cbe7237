"""Is this machine fit to be a node? Checks as pure functions over facts; each says ok, warn or fail and what to try.

`diagnosis.py` gathers the facts. A check that can not know says so and warns; it never says ok.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

GIB = 2**30
RELEASED_S = 1_795_000_000.0
"""2026-11: a clock that shows less is wrong, for this program did not exist."""

MIN_FREE_DISK_BYTES = GIB
MIN_FREE_RAM_BYTES = GIB // 4
"""One DeepSeek-V3 expert in int4 is 23 MB; below this a node holds too few to be worth its place."""

SLOW_START_KEY = "net.ipv4.tcp_slow_start_after_idle"

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
    has_slow_start_after_idle: bool | None
    max_file_descriptors: int
    is_node_running: bool
    num_missing_experts: int | None
    num_holders: int | None


def diagnose(facts: Facts) -> Diagnosis:
    """Run all checks."""
    return Diagnosis(tuple(check(facts) for check in CHECKS))


def check_settings(facts: Facts) -> Finding:
    """The settings file can be read."""
    if facts.settings_error:
        return _fail("settings", facts.settings_error, f"${{EDITOR:-nano}} {facts.settings_file}")
    return _ok("settings", "can be used")


def check_clock(facts: Facts) -> Finding:
    """Records carry times; a minute of difference makes ours worthless."""
    if facts.now_s < RELEASED_S:
        return _fail("clock", "shows a date before this program existed", "sudo timedatectl set-ntp true")
    if facts.is_clock_synchronized is None:
        return _warn("clock", "nothing here says whether it is synchronized", "timedatectl status")
    if not facts.is_clock_synchronized:
        return _warn("clock", "is not synchronized; records fail at 60 s off", "sudo timedatectl set-ntp true")
    return _ok("clock", "synchronized")


def check_runtime_dir(facts: Facts) -> Finding:
    """Who can enter it can command the node."""
    if facts.runtime_dir_mode is not None and facts.runtime_dir_mode & 0o077:
        return _fail("control", f"{facts.runtime_dir} is open to other users", f"chmod 700 {facts.runtime_dir}")
    return _ok("control", f"socket in {facts.runtime_dir}, for this user only")


def check_key_file(facts: Facts) -> Finding:
    """Who can read it can be us."""
    if facts.key_file_mode is not None and facts.key_file_mode & 0o077:
        return _fail("key", f"{facts.key_file} is open to other users", f"chmod 600 {facts.key_file}")
    return _ok("key", facts.key_file or "a new one for each run")


def check_ports(facts: Facts) -> Finding:
    """The ports of the settings are free."""
    if facts.taken_ports:
        ports = " and ".join(map(str, facts.taken_ports))
        return _fail("ports", f"another program has {ports}", "shoal node --port 0 --p2p-port 0")
    return _ok("ports", "free")


def check_reachability(facts: Facts) -> Finding:
    """As far as it can be known from inside."""
    if _is_private(facts.host) is None and facts.host not in ("0.0.0.0", "::"):
        return _ok("network", f"listens on {facts.host}")
    if facts.host in ("127.0.0.1", "::1", "localhost"):
        return _warn("network", "listens on loopback: only this machine reaches it", "shoal node --host 0.0.0.0")
    if all(_is_private(address) is not False for address in facts.local_addresses):
        return _warn(
            "network", "only private addresses: the LAN reaches it, the internet only through relays (NAT)",
            "open the node's ports in the router, or stay within the LAN",
        )  # fmt: skip
    return _ok("network", "has a public address; whether a firewall is before it, only others can tell")


def check_lan(facts: Facts) -> Finding:
    """Whether the machines of this LAN find the node without an address."""
    if not facts.is_lan_wanted:
        return _ok("lan", "not announced: the settings say so")
    if not facts.lan_networks:
        return _ok("lan", "not announced: listens on no private IPv4 network")
    if facts.lan_error:
        return _warn("lan", f"nobody finds this node by multicast DNS: {facts.lan_error}", "shoal node --no-lan")
    return _ok("lan", f"announced on {', '.join(facts.lan_networks)}, if no firewall stops UDP port 5353")


def check_disk(facts: Facts) -> Finding:
    """Manifests and logs need little; a full disk needs help."""
    if facts.free_disk_bytes < MIN_FREE_DISK_BYTES:
        free = f"{facts.free_disk_bytes / 1e6:.0f} MB are free at {facts.cache_dir}"
        return _fail("disk", free, f"du -sh {facts.cache_dir} ~/.cache/* | sort -h | tail")
    return _ok("disk", f"{facts.free_disk_bytes / 1e9:.0f} GB free")


def check_ram(facts: Facts) -> Finding:
    """What is to be given is there."""
    free = f"{facts.free_ram_bytes / 1e9:.1f} GB free"
    if facts.free_ram_bytes < MIN_FREE_RAM_BYTES:
        return _fail("ram", free, "ps aux --sort=-rss | head")
    if facts.share_bytes is not None and facts.share_bytes > facts.free_ram_bytes and not facts.is_node_running:
        half = f"{max(1, facts.free_ram_bytes // 2 // 10**6)}MB"
        return _fail("ram", f"{free}, {facts.share_bytes / 1e9:.1f} GB promised", f"shoal node --share {half}")
    return _ok("ram", free)


def check_model(facts: Facts) -> Finding:
    """The checkpoint is there and of a kind we run."""
    if facts.model_error:
        return _fail("model", facts.model_error, "shoal node --model DIRECTORY")
    return _ok("model", facts.model)


def check_torch(facts: Facts) -> Finding:
    """torch can be imported."""
    if facts.torch_error:
        return _fail("torch", facts.torch_error, "pip install --force-reinstall torch")
    return _ok("torch", "imports")


def check_kernels(facts: Facts) -> Finding:
    """The C++ kernels were built."""
    if not facts.has_native_kernels:
        return _warn(
            "kernels", "the C++ kernels were not built: four times the memory and time of published fp8 weights",
            "sudo apt-get install g++ && pip install --force-reinstall --no-deps shoal",
        )  # fmt: skip
    return _ok("kernels", f"C++, {facts.kernel_isa}")


def check_p2pd(facts: Facts) -> Finding:
    """The libp2p daemon of hivemind's wheel runs here."""
    if facts.p2pd_error:
        return _fail("libp2p", facts.p2pd_error, "pip install --force-reinstall --no-deps hivemind")
    return _ok("libp2p", "p2pd is there")


def check_gpu(facts: Facts) -> Finding:
    """A GPU that nobody can use is worth a word."""
    if not facts.nvidia_gpus:
        return _ok("gpu", "none; experts run on the processor")
    if not facts.can_torch_use_cuda:
        return _warn("gpu", f"{facts.nvidia_gpus} NVIDIA GPUs, but torch can not use CUDA", "nvidia-smi")
    return _ok("gpu", f"{facts.nvidia_gpus} NVIDIA GPUs, CUDA works; `shoal node --kernel cuda` uses it")


def check_idle(facts: Facts) -> Finding:
    """idle_only needs somebody who says when the machine is idle."""
    if facts.idle_only and facts.idle_s is None:
        return _fail("idle", "idle_only is set and nothing says when this machine is idle", "shoal node --no-idle-only")
    return _ok("idle", "not asked for" if not facts.idle_only else "the session says when nobody is there")


def check_metered(facts: Facts) -> Finding:
    """A node pauses on a metered connection, if somebody says that it is one."""
    if facts.on_metered:
        return _ok("metered", "not asked for: on_metered is set")
    if facts.is_metered is None:
        return _warn(
            "metered", "nothing here says whether the connection is metered (no NetworkManager); the node works",
            "shoal node --monthly 50GB",
        )  # fmt: skip
    if facts.is_metered:
        return _warn("metered", "the connection is metered: the node pauses", "shoal node --on-metered")
    return _ok("metered", "the connection is not metered")


def check_tcp(facts: Facts) -> Finding:
    """28 KiB after a pause of a second cost 3 RTT instead of 1 where Linux restarts slowly (measured)."""
    if facts.has_slow_start_after_idle:
        return _warn("tcp", "slow start after idle: 3 RTT after a pause", f"sudo sysctl {SLOW_START_KEY}=0")
    return _ok("tcp", "no slow start after idle" if facts.has_slow_start_after_idle is False else "not Linux")


def check_files(facts: Facts) -> Finding:
    """Every lane is a file descriptor."""
    if facts.max_file_descriptors < MIN_FILE_DESCRIPTORS:
        return _warn("files", f"at most {facts.max_file_descriptors} open files", "ulimit -n 4096")
    return _ok("files", f"at most {facts.max_file_descriptors} open")


def check_node(facts: Facts) -> Finding:
    """A node runs."""
    if not facts.is_node_running:
        return _warn("node", "none runs on this machine", "shoal node")
    return _ok("node", "runs")


def check_coverage(facts: Facts) -> Finding:
    """Every expert has a holder."""
    if facts.num_missing_experts is None:
        return _warn("coverage", "unknown without a node that runs", "shoal node")
    if facts.num_missing_experts:
        return _fail("coverage", f"nobody holds {facts.num_missing_experts} experts", "shoal coverage")
    return _ok("coverage", f"every expert has a holder; {facts.num_holders} holders")


CHECKS: Sequence[Callable[[Facts], Finding]] = (
    check_settings, check_clock, check_runtime_dir, check_key_file, check_ports, check_reachability, check_lan,
    check_disk, check_ram, check_model, check_torch, check_kernels, check_p2pd, check_gpu, check_idle, check_metered,
    check_tcp,
    check_files, check_node, check_coverage,
)  # fmt: skip


def _ok(check: str, message: str) -> Finding:
    return Finding(check, Level.OK, message)


def _warn(check: str, message: str, try_command: str) -> Finding:
    return Finding(check, Level.WARN, message, try_command)


def _fail(check: str, message: str, try_command: str) -> Finding:
    return Finding(check, Level.FAIL, message, try_command)


def _is_private(address: str) -> bool | None:
    """Whether strangers on the internet can not reach this address; None: it is a name."""
    try:
        return not ip_address(address.split("%")[0]).is_global
    except ValueError:
        return None
