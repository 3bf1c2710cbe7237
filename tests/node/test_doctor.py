"""The doctor finds each seeded fault, says how bad it is and the one command to try, and nothing else is wrong."""

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.cli.doctor import _settings
from shoal.node.diagnosis import _says_why_not, gather
from shoal.node.doctor import CHECKS, Facts, Level, diagnose
from shoal.node.settings import GuestSettings, NodeSettings
from shoal.protocol.control import Coverage
from shoal.protocol.net.tcp import TcpKernel
from shoal.simulations.demo_model import MODEL_DIRECTORY

CUBIC = TcpKernel("cubic", ("reno", "bbr", "cubic"), restarts_after_idle=False)
BBR = replace(CUBIC, congestion_control="bbr")

HEALTHY = Facts(
    now_s=1_796_000_000.0, is_clock_synchronized=True, settings_error="", settings_file="/c/shoal.toml",
    runtime_dir="/run/user/1000/shoal", runtime_dir_mode=0o700, key_file="/k", key_file_mode=0o600, taken_ports=(),
    host="0.0.0.0", local_addresses=("127.0.0.1", "8.8.8.8"), is_lan_wanted=True,
    lan_networks=("192.168.1.7/24",), lan_error="", cache_dir="/c", free_disk_bytes=50 * 10**9,
    free_ram_bytes=8 * 10**9, share_bytes=4 * 10**9, model="/m", model_error="", torch_error="",
    has_native_kernels=True, kernel_isa="avx2", p2pd_error="", nvidia_gpus=0, can_torch_use_cuda=False,
    idle_only=False, idle_s=None, on_metered=False, is_metered=False,
    tcp=CUBIC, own_congestion_control="cubic", max_file_descriptors=4096, is_node_running=True,
    num_missing_experts=0, num_holders=3,
)  # fmt: skip

OTHERS = {function(HEALTHY).check for function in CHECKS} - {"node"}  # that no node runs is part of another fault

FAULTS: list[tuple[dict[str, object], str, Level, str]] = [
    ({"settings_error": "no TOML"}, "settings", Level.FAIL, "${EDITOR:-nano} /c/shoal.toml"),
    ({"now_s": 1_000_000.0}, "clock", Level.FAIL, "sudo timedatectl set-ntp true"),
    ({"is_clock_synchronized": False}, "clock", Level.WARN, "sudo timedatectl set-ntp true"),
    ({"is_clock_synchronized": None}, "clock", Level.WARN, "timedatectl status"),
    ({"runtime_dir_mode": 0o755}, "control", Level.FAIL, "chmod 700 /run/user/1000/shoal"),
    ({"key_file_mode": 0o644}, "key", Level.FAIL, "chmod 600 /k"),
    ({"taken_ports": (31330,)}, "ports", Level.FAIL, "shoal node --port 0 --p2p-port 0"),
    ({"host": "127.0.0.1"}, "network", Level.WARN, "shoal node --host 0.0.0.0"),
    ({"local_addresses": ("127.0.0.1", "192.168.1.7", "fe80::1%eth0")}, "network", Level.WARN,
     "open the node's ports in the router, or stay within the LAN"),
    ({"lan_error": "UDP port 5353: Address already in use"}, "lan", Level.WARN, "shoal node --no-lan"),
    ({"free_disk_bytes": 10**8}, "disk", Level.FAIL, "du -sh /c ~/.cache/* | sort -h | tail"),
    ({"free_ram_bytes": 10**8}, "ram", Level.FAIL, "ps aux --sort=-rss | head"),
    ({"share_bytes": 16 * 10**9, "is_node_running": False}, "ram", Level.FAIL, "shoal node --share 4000MB"),
    ({"model_error": "no such directory"}, "model", Level.FAIL, "shoal node --model DIRECTORY"),
    ({"torch_error": "no module"}, "torch", Level.FAIL, "pip install --force-reinstall torch"),
    ({"has_native_kernels": False}, "kernels", Level.WARN,
     "sudo apt-get install g++ && pip install --force-reinstall --no-deps shoal"),
    ({"p2pd_error": "is not there"}, "libp2p", Level.FAIL, "pip install --force-reinstall --no-deps hivemind"),
    ({"nvidia_gpus": 1}, "gpu", Level.WARN, "nvidia-smi"),
    ({"idle_only": True}, "idle", Level.FAIL, "shoal node --no-idle-only"),
    ({"is_metered": None}, "metered", Level.WARN, "shoal node --monthly 50GB"),
    ({"is_metered": True}, "metered", Level.WARN, "shoal node --on-metered"),
    ({"tcp": replace(CUBIC, restarts_after_idle=True)}, "tcp", Level.WARN,
     "sudo sysctl net.ipv4.tcp_slow_start_after_idle=0"),
    ({"tcp": BBR}, "congestion", Level.WARN, "sudo sysctl net.ipv4.tcp_congestion_control=cubic"),
    ({"tcp": BBR, "own_congestion_control": "bbr"}, "congestion", Level.WARN,
     "sudo sysctl net.ipv4.tcp_congestion_control=cubic"),
    ({"tcp": replace(BBR, offered=("reno", "bbr"))}, "congestion", Level.WARN,
     "sudo sysctl net.ipv4.tcp_congestion_control=reno"),
    ({"max_file_descriptors": 256}, "files", Level.WARN, "ulimit -n 4096"),
    ({"is_node_running": False}, "node", Level.WARN, "shoal node"),
    ({"num_missing_experts": 12}, "coverage", Level.FAIL, "shoal coverage"),
    ({"num_missing_experts": None}, "coverage", Level.WARN, "shoal node"),
]  # fmt: skip


def test_a_healthy_machine_is_ok_in_every_check() -> None:
    findings = diagnose(HEALTHY).findings
    assert [finding.level for finding in findings] == [Level.OK] * len(CHECKS)
    assert [finding.try_command for finding in findings] == [""] * len(CHECKS)


@pytest.mark.parametrize(("fault", "check", "level", "command"), FAULTS, ids=str)
def test_a_fault_is_found_alone_with_the_command_to_try(
    fault: dict[str, object], check: str, level: Level, command: str
) -> None:
    found = diagnose(replace(HEALTHY, **fault)).findings  # type: ignore[arg-type]
    wrong = [each for each in found if each.level is not Level.OK and each.check in (check, *OTHERS)]
    assert [(each.check, each.level, each.try_command) for each in wrong] == [(check, level, command)]


def nothing(command: Sequence[str]) -> str | None:
    return None


def facts(settings: NodeSettings, runtime: Path, run=nothing, coverage: Coverage | None = None) -> Facts:
    return gather(settings, "", Path("/c"), runtime, 1_796_000_000.0, coverage is not None, coverage, run)


def level_of(found: Facts, check: str) -> Level:
    return next(finding.level for finding in diagnose(found).findings if finding.check == check)


def test_faults_of_a_real_machine_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, key = tmp_path / "run", tmp_path / "key"
    runtime.mkdir(mode=0o755)
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = NodeSettings(
            tmp_path / "none", share_bytes=10**18, port=port, identity=key, guest=GuestSettings(idle_only=True)
        )  # fmt: skip
        found = facts(settings, runtime)
    failing = {finding.check for finding in diagnose(found).findings if finding.level is Level.FAIL}
    assert failing == {"control", "key", "ports", "ram", "model", "torch", "idle"}
    assert found.taken_ports == (port,)


def test_a_machine_with_a_model_and_no_faults_has_none(tmp_path: Path) -> None:
    coverage = Coverage("ab", 2, 16, 0, 1, 1, 10, ())
    found = facts(NodeSettings(MODEL_DIRECTORY), tmp_path / "none", lambda command: "yes\n", coverage)
    assert found.is_clock_synchronized
    assert found.num_missing_experts == 0
    wrong = {finding.check for finding in diagnose(found).findings if finding.level is Level.FAIL}
    assert wrong <= {"disk", "ram"}  # what this machine may really lack


def test_a_program_that_is_missing_or_no_program_is_found(tmp_path: Path) -> None:
    program = tmp_path / "p2pd"
    assert "is not there" in _says_why_not(program)
    program.write_text("not a program")
    program.chmod(0o755)
    assert "does not run" in _says_why_not(program)
    assert _says_why_not(Path("/bin/true")) == ""


def test_settings_that_are_wrong_do_not_stop_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "shoal" / "shoal.toml"
    file.parent.mkdir()
    file.write_text("[node.guest]\nmonthly_byte = 5\n")
    settings, error = _settings(None)
    assert "did you mean monthly_bytes?" in error
    assert settings.model == MODEL_DIRECTORY
    file.write_text("[node]\nshare_bytes = '2GB'\nthreads = 3\n")
    settings, error = _settings(None)
    assert (settings.share_bytes, settings.threads, error) == (2 * 10**9, 3, "")
    assert os.path.exists(file)
