"""What the verbs say in words: every state and figure, and the sentence that helps."""

from dataclasses import replace

import pytest

from shoal.cli.reports import REASONS, coverage_lines, log_line, peer_lines, size, state_line, status_lines
from shoal.protocol.control import (
    Coverage,
    LayerCoverage,
    LogLine,
    NodeLimits,
    NodeState,
    PauseReason,
    Peers,
    RareExpert,
)
from tests.protocol.test_control import ALL_REPLIES, STATUS


def test_every_reason_has_words() -> None:
    assert set(REASONS) == set(PauseReason)


@pytest.mark.parametrize("state", [NodeState.STARTING, NodeState.SERVING, NodeState.DRAINING])
def test_a_state_is_said_as_it_is(state: NodeState) -> None:
    assert state_line(replace(STATUS, state=state, pause_reason=None)) == state


def test_a_pause_says_why_and_until_when() -> None:
    assert state_line(STATUS).endswith(": by you")
    assert "until `shoal resume`" in state_line(replace(STATUS, paused_until_s=None))
    hot = replace(STATUS, paused_until_s=None, pause_reason=PauseReason.TEMPERATURE)
    assert state_line(hot) == "paused: too hot"


def test_status_says_figures_against_limits() -> None:
    said = "\n".join(status_lines(STATUS))
    assert "at most 125.0 kB/s" in said
    assert "3.0 kB of 100.0 GB" in said
    unlimited = replace(STATUS, limits=NodeLimits(None, None, 4, None, None, None))
    assert "no limit" in "\n".join(status_lines(unlimited))


def test_coverage_says_what_is_missing_and_what_would_close_it() -> None:
    layers = (LayerCoverage(3, (1, 0, 0, 12)), LayerCoverage(4, (1, 2, 0, 1)))
    said = coverage_lines(Coverage("ab", 2, 8, 3, 0, 3, 500_000_000, layers))
    assert said[0] == "coverage 62.5% of 8 experts by 2 holders"
    assert said[2] == "one more node with 1.0 GB closes layer 3"
    assert said[3:] == ["layer   3  1..+", "layer   4  12.1"]


def test_coverage_says_what_is_rare_what_is_coming_and_what_only_anchors_hold() -> None:
    layers = (LayerCoverage(3, (1, 0, 0, 2), 3, "1", "2"), LayerCoverage(4, (2, 2, 2, 2), coming="0-3"))
    rarest = (RareExpert(3, 1, 0), RareExpert(3, 2, 0), RareExpert(3, 0, 1))
    said = coverage_lines(Coverage("ab", 2, 8, 2, 0, 3, 10**9, layers, 1, 2, 3, 5, 1, rarest))
    assert said[2:] == [
        "fewer than 2 replicas: 3 experts; coming: 5; only on disk: 1",
        "rarest, layer:expert (replicas): 3:1 (0), 3:2 (0), 3:0 (1)",
        "one more node with 2.0 GB closes layer 3",
        "layer   3  1..2; below 2: 3; coming: 1; only on disk: 2",
        "layer   4  2222; coming: 0-3",
    ]


def test_peers_say_what_they_are() -> None:
    holders = next(reply for reply in ALL_REPLIES if isinstance(reply, Peers))
    first, second = peer_lines(holders)
    assert first == "12D3 holder, 1 experts in 1 layers, 1.2.3.4:5"
    assert second == "x client, 0 connections, 0 requests served"
    assert peer_lines(Peers(())) == ["no peers"]


def test_a_log_line_leaves_out_what_is_empty() -> None:
    line = LogLine(0.0, "info", "node_paused", {"reason": "user", "until_s": None})
    assert log_line(line).endswith("info    node_paused reason=user")


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2 * 10**12, "2.0 TB")])
def test_sizes_are_decimal(count: int, words: str) -> None:
    assert size(count) == words
