"""A client whose holders are elsewhere is told once what TCP costs here, in its language, with one command."""

from pathlib import Path

import pytest

from shoal.cli import tcp_words
from shoal.cli.tcp_words import tcp_words as sentences
from shoal.cli.tcp_words import warn_of_tcp
from shoal.client.routing.peers import Breaker, PeerSnapshot
from shoal.node import host
from shoal.node.log_events import LogEvent, TcpIsSlow
from shoal.protocol.ids import PeerId
from shoal.protocol.net.tcp import TcpKernel
from tests.protocol.test_tcp import proc

COMMAND = "sudo sysctl net.ipv4.tcp_congestion_control=cubic net.ipv4.tcp_slow_start_after_idle=0"
BAD = TcpKernel("bbr", ("reno", "bbr", "cubic"), restarts_after_idle=True)


def holder(*addresses: str) -> PeerSnapshot:
    return PeerSnapshot(PeerId("a"), None, None, {}, 0, Breaker.CLOSED, 0.0, addresses=addresses)


def test_all_of_it_is_said_with_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = [holder("127.0.0.1:4000"), holder("192.168.1.7:4000")]
    warn_of_tcp(peers, "libp2p", proc(tmp_path, "bbr", "reno bbr cubic", "1"))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "shoal: TCP's congestion control here makes a small exchange take 1.6 round trips.\n"
        "shoal: TCP's window shrinks in idle moments here: what is said after a pause takes 3 round trips.\n"
        f"       Try: {COMMAND}\n"
    )


def test_a_chat_is_told_the_same_in_sentences_of_its_own(tmp_path: Path) -> None:
    kernel = proc(tmp_path, "bbr", "reno bbr cubic", "1")
    *troubles, command = sentences([holder("192.168.1.7:4000")], "libp2p", kernel)
    assert len(troubles) == 2
    assert command == f"Try: {COMMAND}"
    assert sentences([holder("127.0.0.1:4000")], "libp2p", kernel) == ()


def test_sockets_that_choose_for_themselves_are_no_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_words, "unpaced_control", lambda: "reno")
    warn_of_tcp([holder("192.168.1.7:4000")], "direct", proc(tmp_path, "bbr", "reno bbr", "0"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(tcp_words, "unpaced_control", lambda: "bbr")
    warn_of_tcp([holder("192.168.1.7:4000")], "direct", proc(tmp_path, "bbr", "reno bbr", "0"))
    assert "tcp_congestion_control=reno" in capsys.readouterr().err


@pytest.mark.parametrize("addresses", [(), ("127.0.0.1:4000",), ("/ip4/127.0.0.1/tcp/1", "localhost:2")])
def test_a_swarm_on_this_machine_is_not_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], addresses: tuple[str, ...]
) -> None:
    warn_of_tcp([holder(*addresses)], "libp2p", proc(tmp_path, "bbr", "reno bbr", "1"))
    assert capsys.readouterr().err == ""


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[LogEvent]:
    events: list[LogEvent] = []
    monkeypatch.setattr(host, "log_event", events.append)
    return events


def test_a_node_that_others_reach_logs_it_once_with_the_command(logged: list[LogEvent]) -> None:
    host.warn_of_tcp("0.0.0.0", BAD)
    assert logged == [TcpIsSlow(is_paced=True, is_restarting=True, command=COMMAND)]
    assert str(logged[0]) == (
        "TCP: its congestion control makes a small exchange through libp2p take 1.6 round trips; its window shrinks in"
        f" idle moments, and 28 KiB then take 3 round trips; try: {COMMAND}"
    )


@pytest.mark.parametrize(("address", "kernel"), [("127.0.0.1", BAD), ("::1", BAD), ("0.0.0.0", TcpKernel("cubic"))])
def test_a_node_on_loopback_or_on_a_good_kernel_logs_nothing(
    logged: list[LogEvent], address: str, kernel: TcpKernel
) -> None:
    host.warn_of_tcp(address, kernel)
    assert logged == []
