"""Gathers the facts for `doctor.py` from this machine. Blocking, and loads torch: a second or two."""

import importlib
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil

from shoal.experts.locations import default_cache_dir
from shoal.node.doctor import Facts
from shoal.node.guest.sensors import RunProgram, idle_seconds, is_metered, run_program
from shoal.node.settings import NodeSettings
from shoal.protocol.control import Coverage
from shoal.protocol.errors import ShoalError
from shoal.protocol.lan import lan_cards
from shoal.protocol.net.local_ports import is_port_free, local_addresses, network_cards, why_no_mdns
from shoal.protocol.net.p2pd import find_p2pd
from shoal.protocol.net.tcp import read_tcp_kernel, unpaced_control

TIMEDATECTL = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
P2PD_TIMEOUT_S = 10.0


def gather(
    settings: NodeSettings,
    settings_error: str,
    settings_file: Path,
    runtime_dir: Path,
    now_s: float,
    is_node_running: bool,
    coverage: Coverage | None,
    run: RunProgram = run_program,
) -> Facts:
    """coverage: the running node's; None if there is none."""
    cache_dir = settings.cache_dir or default_cache_dir()
    torch_error, can_cuda = _torch()
    has_native, isa = _kernels()
    networks = lan_cards(network_cards(), settings.host)
    return Facts(
        now_s=now_s,
        is_clock_synchronized={"yes": True, "no": False}.get((run(TIMEDATECTL) or "").strip()),
        settings_error=settings_error,
        settings_file=str(settings_file),
        runtime_dir=str(runtime_dir),
        runtime_dir_mode=_mode(runtime_dir),
        key_file=str(settings.identity or ""),
        key_file_mode=_mode(settings.identity) if settings.identity else None,
        taken_ports=() if is_node_running else _taken(settings),
        host=settings.host,
        local_addresses=local_addresses(),
        is_lan_wanted=settings.lan,
        lan_networks=tuple(str(each) for each in networks),
        lan_error=why_no_mdns() if settings.lan and networks else "",
        cache_dir=str(cache_dir),
        free_disk_bytes=shutil.disk_usage(_existing(cache_dir)).free,
        free_ram_bytes=psutil.virtual_memory().available,
        share_bytes=settings.share_bytes,
        model=str(settings.model),
        model_error="can not be looked at without torch" if torch_error else _model(settings.model),
        torch_error=torch_error,
        has_native_kernels=has_native,
        kernel_isa=isa,
        p2pd_error=_p2pd(),
        nvidia_gpus=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        can_torch_use_cuda=can_cuda,
        idle_only=settings.guest.idle_only,
        idle_s=idle_seconds(now_s, run),
        on_metered=settings.guest.on_metered,
        is_metered=None if settings.guest.on_metered else is_metered(run),
        tcp=read_tcp_kernel(),
        own_congestion_control=unpaced_control(),
        max_file_descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        is_node_running=is_node_running,
        num_missing_experts=coverage.num_missing if coverage else None,
        num_holders=coverage.num_holders if coverage else None,
    )


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _existing(path: Path) -> Path:
    """The nearest directory above that is there."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _taken(settings: NodeSettings) -> tuple[int, ...]:
    return tuple(port for port in (settings.port, settings.p2p_port) if port and not is_port_free(settings.host, port))


def _torch() -> tuple[str, bool]:
    """Why torch can not be imported (empty: it can), and whether it can use CUDA."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # a missing or a damaged library
        return f"can not be imported: {error}", False
    return "", bool(torch.cuda.is_available())


def _kernels() -> tuple[bool, str]:
    try:
        from shoal.kernels import cpu
    except (ImportError, OSError):
        return False, ""
    return cpu.is_available(), cpu.CpuKernels(1).isa if cpu.is_available() else ""


def _model(directory: Path) -> str:
    """Why the checkpoint can not be used; empty if it can."""
    from shoal.experts.manifest_maker import ModelFiles
    from shoal.experts.pieces.model import PieceModel
    from shoal.experts.pieces.shelf import NOTE_FILE

    try:
        if (directory / NOTE_FILE).is_file():
            PieceModel.open_folder(directory)
        else:
            ModelFiles.open(directory).checkpoint.close()
    except ShoalError as error:
        return str(error)
    return ""


def _p2pd() -> str:
    """Why p2pd does not run; empty if it does."""
    try:
        return _says_why_not(find_p2pd())
    except ShoalError as error:
        return str(error)


def _says_why_not(program: Path, run: Callable[..., object] = subprocess.run) -> str:
    if not program.exists():
        return f"{program} is not there"
    try:
        run([program, "--help"], capture_output=True, timeout=P2PD_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{program} does not run: {error}"
    return ""
