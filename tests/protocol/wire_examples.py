"""The examples of PROTOCOL.md, made from fixed seeds: what `tests/vectors/wire.json` and the document must say.

`python -m tests.protocol.wire_examples` prints the vectors after a deliberate change of the protocol.
"""

import json
from dataclasses import replace

import torch

from shoal.protocol.dtypes import TAKEN, to_bits
from shoal.protocol.frames import Frame, encode_frame, encode_header
from shoal.protocol.handshake import ClientHandshake
from shoal.protocol.herald import Herald
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.invite import Invite, encode_invite
from shoal.protocol.lan import LanSwarm
from shoal.protocol.membership import Founder, token_id
from shoal.protocol.messages import (
    Cancel,
    Challenge,
    Chunk,
    Dispatch,
    Drain,
    DType,
    Fetch,
    Lane,
    Partial,
    Ping,
    Pong,
    Refusal,
    Rounding,
    WeightFormat,
    Welcome,
)
from shoal.protocol.model_files import ListedFile, encode_files, list_digest
from shoal.protocol.pulses import PulseChain
from shoal.protocol.record_book import tag_of
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.records import NodeRecord, roster_name
from shoal.protocol.revocation_list import sign_revocations
from shoal.protocol.sync_messages import (
    SentRecord,
    Sign,
    Status,
    SyncReply,
    SyncRequest,
    encode_reply,
    encode_request,
)
from shoal.protocol.tensors import dispatch_body, encode_rows, request_hash, tensor_bytes

SERVER = Identity.from_seed(b"\x01" * 32)
CLIENT = Identity.from_seed(b"\x02" * 32)
SERVER_NONCE, CLIENT_NONCE, SESSION = b"\x11" * 32, b"\x22" * 32, b"\x33" * 16
MODEL_ROOT = b"\x44" * 32
REQUEST_ID = 7

CHALLENGE = Challenge(1, SERVER_NONCE)
HELLO = ClientHandshake(CLIENT, SERVER.peer, CLIENT_NONCE, SESSION, Lane.ACT).answer(CHALLENGE)
FOUNDER_SECRET, SERIAL = b"\x66" * 32, b"\x77" * 16
MEMBERSHIP = Founder(FOUNDER_SECRET).member(SERIAL)
MEMBER_HELLO = ClientHandshake(CLIENT, SERVER.peer, CLIENT_NONCE, SESSION, Lane.ACT, MEMBERSHIP).answer(CHALLENGE)
LAN_PORT, LAN_NONCE = 4001, b"\x88" * 12
REVOCATIONS = sign_revocations([token_id(MEMBERSHIP.token_key), "00000000000000aa"], Founder(FOUNDER_SECRET).identity)
SEAL = RecordSeal(MEMBERSHIP.directory_secret)
DISPATCH = Dispatch(
    MODEL_ROOT, 3, Rounding.BF16, WeightFormat.FP8_BLOCK, DType.BF16,
    num_tokens=2, hidden=4, experts=(5, 9), num_rows=(2, 1), deadline_ms=500,
)  # fmt: skip
HIDDEN_STATES = torch.tensor([[1.0, -2.0, 0.5, 0.0], [3.0, 0.25, -1.0, 8.0]], dtype=torch.bfloat16)
ROW_IDX, TOPK_WEIGHTS = torch.tensor([0, 1, 1]), torch.tensor([0.75, 0.5, 0.25])
DISPATCH_BODY = dispatch_body(HIDDEN_STATES, ROW_IDX, TOPK_WEIGHTS)
PARTIAL = Partial(request_hash(encode_header(DISPATCH), DISPATCH_BODY), 2, 4, queue_us=120, compute_us=3400)
SUMS = torch.tensor([[0.5, -1.5, 2.0, 0.0], [1.0, 0.125, -4.0, 1.0]])
PARTIAL_BODY = bytes(tensor_bytes(SUMS))
INEXACT = {
    name: replace(DISPATCH, dtype=dtype, reply_dtype=dtype)
    for name, dtype in (("bf16", DType.BF16), ("fp8", DType.FP8), ("int8", DType.INT8))
}
INEXACT_BODIES = {
    name: dispatch_body(encode_rows(HIDDEN_STATES, DType(request.dtype)), ROW_IDX, TOPK_WEIGHTS)
    for name, request in INEXACT.items()
}
INEXACT_ANSWERS = {
    name: replace(
        PARTIAL, request_hash=request_hash(encode_header(request), INEXACT_BODIES[name]), dtype=request.reply_dtype
    )
    for name, request in INEXACT.items()
}
FETCH = Fetch(MODEL_ROOT, b"\x99" * 32, begin=262_144, size=65_536, deadline_ms=20_000)
CHUNK_BODY = b"a piece ends"
CHUNK = Chunk(request_hash(encode_header(FETCH)), piece_bytes=262_144 + len(CHUNK_BODY), size=len(CHUNK_BODY))

FRAMES = {
    "challenge": Frame(0, CHALLENGE),
    "hello": Frame(0, HELLO),
    "memberhello": Frame(0, MEMBER_HELLO),
    "welcome": Frame(0, Welcome(1, CLIENT_NONCE, 64, 64 * 2**20)),
    "dispatch": Frame(REQUEST_ID, DISPATCH, DISPATCH_BODY),
    "partial": Frame(REQUEST_ID, PARTIAL, PARTIAL_BODY),
    "welcome_dtypes": Frame(0, Welcome(1, CLIENT_NONCE, 64, 64 * 2**20, to_bits(TAKEN))),
    **{f"dispatch_{name}": Frame(REQUEST_ID, request, INEXACT_BODIES[name]) for name, request in INEXACT.items()},
    **{
        f"partial_{name}": Frame(REQUEST_ID, answer, bytes(tensor_bytes(encode_rows(SUMS, DType(answer.dtype)))))
        for name, answer in INEXACT_ANSWERS.items()
    },
    "refusal": Frame(REQUEST_ID, Refusal(6, 50)),
    "cancel": Frame(REQUEST_ID, Cancel()),
    "fetch": Frame(REQUEST_ID, FETCH),
    "chunk": Frame(REQUEST_ID, CHUNK, CHUNK_BODY),
    "ping": Frame(0, Ping(b"\x55" * 8)),
    "pong": Frame(0, Pong(b"\x55" * 8)),
    "drain": Frame(0, Drain(5000)),
}

NOW_S = 1_800_000_000.0
CONTENT = NodeRecord(
    peer=SERVER.peer, model_root=MODEL_ROOT, experts={LayerId(3): frozenset(map(ExpertId, (0, 1, 9)))},
    weight_format=WeightFormat.FP8_BLOCK, roundings=2, kernel_class=1, capacity_mmacs=12_000, queue_ms=4,
    addresses=("192.0.2.7:4001",),
)  # fmt: skip
FULL_CONTENT = replace(
    CONTENT, coming={LayerId(3): frozenset(map(ExpertId, (2, 3)))}, since_s=1_799_900_000, room=40,
    zone="za-cpt", cold={LayerId(4): frozenset(map(ExpertId, (0, 8)))}, read_ms=20,
    gives_trunk=True,
)  # fmt: skip
SAID, FULL_SAID = (Herald(SERVER, lambda: NOW_S).say(content) for content in (CONTENT, FULL_CONTENT))
MEMBER_SAID = Herald(SERVER, lambda: NOW_S, MEMBERSHIP.vouch(SERVER.public_key)).say(CONTENT)
CHAIN = PulseChain(SERVER, MODEL_ROOT, round(NOW_S * 1000))
PULSE_INDEX = 8
FILES = (
    ListedFile("config.json", 1353, b"\xaa" * 32),
    ListedFile("shoal.manifest.json", 100_000, b"\xbb" * 32),
    ListedFile("tokenizer.json", 80_000, b"\xcc" * 32),
)
FILE_LIST = encode_files(FILES)
INVITE = Invite(MODEL_ROOT, (f"/ip4/192.0.2.7/tcp/4001/p2p/{SERVER.peer}",), files=list_digest(FILE_LIST))
SYNC_REQUEST = SyncRequest(
    roster_name(MODEL_ROOT), index=PULSE_INDEX, pulse=CHAIN[PULSE_INDEX], is_summary_wanted=True,
    tags=(tag_of(SAID.data),),
)  # fmt: skip
MEMBER_SYNC_REQUEST = SyncRequest(
    SEAL.name(MODEL_ROOT), index=PULSE_INDEX, pulse=CHAIN[PULSE_INDEX], word=SEAL.word(SERVER.peer, CLIENT.peer)
)
SYNC_REPLY = SyncReply(
    Status.KEPT, (Sign(tag_of(SAID.data), PULSE_INDEX, CHAIN[PULSE_INDEX]),),
    (SentRecord(SERVER.public_key, SAID.data, PULSE_INDEX, CHAIN[PULSE_INDEX]),),
)  # fmt: skip


def vectors() -> dict[str, str]:
    """Name to lower-case hex: frames, a node record, SYNC, and what they are made of."""
    return {
        "server_seed": "01" * 32,
        "client_seed": "02" * 32,
        "server_public_key": SERVER.public_key.hex(),
        "client_public_key": CLIENT.public_key.hex(),
        **{name: (encode_frame(frame.request_id, frame.message) + frame.body).hex() for name, frame in FRAMES.items()},
        "request_hash": PARTIAL.request_hash.hex(),
        "fetch_hash": CHUNK.request_hash.hex(),
        "node_record": SAID.data.hex(),
        "full_record": FULL_SAID.data.hex(),
        "member_record": MEMBER_SAID.data.hex(),
        "pulse_7": CHAIN[PULSE_INDEX - 1].hex(),
        "pulse_8": CHAIN[PULSE_INDEX].hex(),
        "sync_request": encode_request(SYNC_REQUEST).hex(),
        "member_sync_request": encode_request(MEMBER_SYNC_REQUEST).hex(),
        "word": SEAL.word(SERVER.peer, CLIENT.peer).hex(),
        "sync_reply": encode_reply(SYNC_REPLY).hex(),
        "roster_name": roster_name(MODEL_ROOT).hex(),
        "founder_key": MEMBERSHIP.founder_key.hex(),
        "directory_secret": MEMBERSHIP.directory_secret.hex(),
        "token_seed": MEMBERSHIP.token_seed.hex(),
        "token_id": token_id(MEMBERSHIP.token_key),
        "private_roster_name": SEAL.name(MODEL_ROOT).hex(),
        "lan_sealed": LanSwarm(MODEL_ROOT, MEMBERSHIP.directory_secret)
        .announce(SERVER.public_key, LAN_PORT, LAN_NONCE)["s"]
        .hex(),
        "revocation_list": REVOCATIONS.encoded.hex(),
        "file_list": FILE_LIST.hex(),
        "file_list_digest": list_digest(FILE_LIST).hex(),
        "invite": encode_invite(INVITE),
        "sealed_record": SEAL.seal(SAID.data, SERVER.peer).hex(),
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=2))
