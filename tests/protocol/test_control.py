"""The control messages: what goes in comes out, and nothing else gets in."""

import json

import pytest

from shoal.protocol.control import (
    REPLIES,
    REQUESTS,
    ControlReply,
    Coverage,
    FollowLogs,
    GetStatus,
    LayerCoverage,
    LayerHolding,
    LogLine,
    NodeLimits,
    NodeState,
    NodeStatus,
    Pause,
    PauseReason,
    Peer,
    PeerRole,
    Peers,
    RareExpert,
    Refused,
    as_json,
    decode_reply,
    decode_request,
    encode_control,
)
from shoal.protocol.errors import Malformed

STATUS = NodeStatus(
    name="node", version="0.1.0", pid=7, peer="12D3", state=NodeState.PAUSED, pause_reason=PauseReason.USER,
    paused_until_s=1_790_000_000.5, started_at_s=1_780_000_000.0, model="demo_model", model_root="ab" * 32,
    weight_format="fp8_block", kernel="cpu", holding=(LayerHolding(1, "0-15,20"),), num_experts=17,
    resident_bytes=10**9, num_clients=2, requests_served=5, requests_refused=1, rows_computed=40, tokens_given=1.5,
    compute_s=0.25, queue_s=0.0, bytes_up=1000, bytes_down=2000, up_bytes_per_s=10.0, down_bytes_per_s=20.0,
    month="2026-11", month_bytes=3000, limits=NodeLimits(10**9, None, 4, 125_000, None, 10**11),
    addresses=("127.0.0.1:31330",),
)  # fmt: skip

ALL_REPLIES: list[ControlReply] = [
    STATUS,
    Peers((Peer("12D3", PeerRole.HOLDER, ("1.2.3.4:5",), (LayerHolding(3, "0"),), 1), Peer("x", PeerRole.CLIENT))),
    Coverage("ab", 2, 16, 1, 0, 3, 44_000_000, (LayerCoverage(3, (1, 0)),)),
    Coverage("ab", 1, 2, 1, 0, 3, 44, (LayerCoverage(3, (1, 0), 2, "1", "1"),), 1, 2, 2, 1, 1, (RareExpert(3, 1, 0),)),
    LogLine(1.0, "info", "paused", {"reason": "user", "seconds": 1.5, "peer": None}),
    Refused("no", 4),
]  # fmt: skip


@pytest.mark.parametrize("reply", ALL_REPLIES, ids=lambda reply: type(reply).__name__)
def test_a_reply_comes_back_as_it_was(reply: ControlReply) -> None:
    line = encode_control(reply)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert decode_reply(line) == reply


@pytest.mark.parametrize("request_", [GetStatus(), Pause(7200.0), Pause(), FollowLogs(5, True)], ids=str)
def test_a_request_comes_back_as_it_was(request_: GetStatus | Pause | FollowLogs) -> None:
    assert decode_request(encode_control(request_)) == request_


def test_every_message_has_one_name() -> None:
    assert len({*REQUESTS.values(), *REPLIES.values()}) == len(REQUESTS) + len(REPLIES)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b"3", b"{}", b'{"type": "nonsense"}', b'{"type": "pause", "duration_s": 0}',
        b'{"type": "pause", "duration_s": "2h"}', b'{"type": "pause", "duration_s": 1e9}',
        b'{"type": "pause", "duration_s": NaN}', b'{"type": "logs", "num_lines": 99999}', b"\xff\xfe", b"[" * 4000,
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_request_is_malformed(line: bytes) -> None:
    with pytest.raises(Malformed):
        decode_request(line)


def test_a_later_versions_field_is_ignored() -> None:
    assert decode_request(b'{"type": "pause", "duration_s": 5, "why": "game"}') == Pause(5.0)


def test_a_reply_prints_as_plain_json() -> None:
    printed = json.loads(json.dumps(as_json(STATUS)))
    assert printed["state"] == "paused"
    assert printed["holding"] == [{"layer": 1, "experts": "0-15,20"}]
