"""What the kernel's settings do to an exchange is read without rights, said with one command that cures it, and mended
where a socket of ours may choose."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from shoal.protocol.net import tcp
from shoal.protocol.net.direct import DirectConnector, listen_direct
from shoal.protocol.net.tcp import (
    TcpAdvice,
    TcpKernel,
    TcpTrouble,
    congestion_control_of,
    leaves_this_machine,
    read_tcp_kernel,
    tcp_advice,
    tune,
    unpaced_control,
)
from tests.protocol.networks import CLIENT, SERVER, echo

GOOD = TcpKernel("cubic", ("reno", "cubic"), restarts_after_idle=False)


def proc(folder: Path, control: str, offered: str, restarts: str) -> Path:
    """A folder that looks like the kernel's."""
    (folder / "tcp_congestion_control").write_text(f"{control}\n", encoding="ascii")
    (folder / "tcp_available_congestion_control").write_text(f"{offered}\n", encoding="ascii")
    (folder / "tcp_slow_start_after_idle").write_text(f"{restarts}\n", encoding="ascii")
    return folder


def test_the_kernels_settings_are_read(tmp_path: Path) -> None:
    found = read_tcp_kernel(proc(tmp_path, "bbr", "reno bbr cubic", "1"))
    assert found == TcpKernel("bbr", ("reno", "bbr", "cubic"), restarts_after_idle=True)
    assert read_tcp_kernel(proc(tmp_path, "cubic", "reno cubic", "0")) == GOOD


def test_a_kernel_that_says_nothing_is_left_alone(tmp_path: Path) -> None:
    found = read_tcp_kernel(tmp_path / "nowhere")
    assert found == TcpKernel("", (), None)
    assert tcp_advice(found, sets_own=False) is None


PACES = "net.ipv4.tcp_congestion_control=cubic"
RESTARTS = "net.ipv4.tcp_slow_start_after_idle=0"


@pytest.mark.parametrize(
    ("control", "restarts", "sets_own", "troubles", "command"),
    [
        ("cubic", "1", False, (TcpTrouble.RESTARTS,), f"sudo sysctl {RESTARTS}"),
        ("bbr", "0", False, (TcpTrouble.PACED,), f"sudo sysctl {PACES}"),
        ("bbr2", "0", False, (TcpTrouble.PACED,), f"sudo sysctl {PACES}"),
        ("bbr", "1", False, (TcpTrouble.PACED, TcpTrouble.RESTARTS), f"sudo sysctl {PACES} {RESTARTS}"),
        ("bbr", "1", True, (TcpTrouble.RESTARTS,), f"sudo sysctl {RESTARTS}"),
    ],
)
def test_all_that_is_wrong_is_cured_by_one_command(
    tmp_path: Path, control: str, restarts: str, sets_own: bool, troubles: tuple[TcpTrouble, ...], command: str
) -> None:
    kernel = read_tcp_kernel(proc(tmp_path, control, f"reno {control} cubic", restarts))
    assert tcp_advice(kernel, sets_own=sets_own) == TcpAdvice(troubles, command)


@pytest.mark.parametrize(("control", "sets_own"), [("cubic", False), ("cubic", True), ("bbr", True)])
def test_nothing_is_said_where_nothing_is_wrong(tmp_path: Path, control: str, sets_own: bool) -> None:
    kernel = read_tcp_kernel(proc(tmp_path, control, "reno bbr cubic", "0"))
    assert tcp_advice(kernel, sets_own=sets_own) is None


def test_reno_is_the_advice_where_there_is_no_cubic() -> None:
    advice = tcp_advice(TcpKernel("bbr", ("reno", "bbr"), None), sets_own=False)
    assert advice is not None
    assert advice.command == "sudo sysctl net.ipv4.tcp_congestion_control=reno"


@pytest.mark.parametrize(
    ("address", "leaves"),
    [
        ("127.0.0.1:4000", False), ("[::1]:4000", False), ("localhost:4000", False), ("/ip4/127.0.0.1/tcp/4000", False),
        ("192.168.1.7:4000", True), ("[2001:db8::1]:4000", True), ("0.0.0.0:4000", True), ("example.org:4000", True),
        ("/ip4/192.168.1.7/tcp/4000/p2p/Qm", True), ("/dns4/example.org/tcp/4000", True), ("nonsense", True),
    ],
)  # fmt: skip
def test_only_loopback_stays_on_this_machine(address: str, leaves: bool) -> None:
    assert leaves_this_machine([address]) is leaves
    assert leaves_this_machine(["127.0.0.1:1", address]) is leaves
    assert not leaves_this_machine([])


class FakeSocket:
    """A socket whose congestion control may be some of what there is."""

    def __init__(self, control: str, allowed: tuple[str, ...]) -> None:
        self.control = control
        self._allowed = allowed

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self.control.encode().ljust(size, b"\0")

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        if isinstance(value, bytes):
            if value.decode() not in self._allowed:
                raise PermissionError(1, "Operation not permitted")
            self.control = value.decode()


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="needs Linux: a congestion control by socket")
@pytest.mark.parametrize(
    ("control", "allowed", "chosen"),
    [
        ("bbr", ("reno", "bbr", "cubic"), "cubic"),
        ("bbr", ("reno", "bbr"), "reno"),
        ("bbr", ("bbr",), "bbr"),
        ("cubic", ("reno", "cubic"), "cubic"),
        ("dctcp", ("reno", "cubic", "dctcp"), "dctcp"),
    ],
)
def test_a_socket_that_would_be_paced_chooses_what_it_may(control: str, allowed: tuple[str, ...], chosen: str) -> None:
    connection = FakeSocket(control, allowed)
    tune(connection)  # type: ignore[arg-type]
    assert connection.control == chosen


def test_both_ends_of_a_channel_have_what_a_socket_of_ours_gets_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[socket.socket] = []

    def tune_and_note(each: socket.socket) -> None:
        tcp.tune(each)
        ends.append(each)

    monkeypatch.setattr("shoal.protocol.net.direct.tune", tune_and_note)

    async def test() -> None:
        listener = await listen_direct(SERVER, "127.0.0.1", 0, echo, os.urandom)
        connector = DirectConnector(CLIENT, os.urandom)
        await connector.connect(SERVER.peer, listener.addresses, 60)
        assert len(ends) == 4  # who listens, and three lanes
        assert {congestion_control_of(each) for each in ends} == {unpaced_control()}
        for each in ends:
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await connector.aclose()
        await listener.aclose()

    asyncio.run(test())


def test_what_listens_hands_its_settings_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tune(listening)
        with socket.create_connection(listening.getsockname()) as client:
            accepted, _ = listening.accept()
            with accepted:
                assert congestion_control_of(accepted) == congestion_control_of(listening) == unpaced_control()
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert client.getpeername() == accepted.getsockname()
