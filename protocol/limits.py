"""Every bound of the wire, with its unit and its reason (PROTOCOL.md §9). A peer that passes one is at fault."""

KIB = 1024
MIB = 1024 * KIB

MAX_HEADER_BYTES = 4 * KIB
"""A message header: 512 expert ids and counts (Kimi K2 has 384 experts a layer) take 3 KiB in msgpack."""

MAX_BODY_BYTES = 32 * MIB
"""The raw tensors of one frame: 512 tokens of 16,384 fp32 (DeepSeek-V3's 7,168: 14.7 MB)."""

MAX_FRAME_BYTES = MAX_HEADER_BYTES + MAX_BODY_BYTES
"""Header and body of any frame."""

MAX_HANDSHAKE_BYTES = 4 * KIB
"""What an unauthenticated peer can make us read."""

HANDSHAKE_TIMEOUT_S = 5.0
"""A handshake takes 2 RTT; 5 s allows for 2 s of RTT on a bad link and ends a silent connection soon."""

MAX_TOKENS_PER_FRAME = 512
"""`T` of one micro-batch. Prefill is chunked to it; more would let one frame hold a lane for long."""

MAX_HIDDEN = 16_384
"""`H`: twice DeepSeek-V3's 7,168 and more than any family of model-and-kernels §A8."""

MAX_EXPERTS_PER_FRAME = 512
"""Experts of one layer in one frame; Kimi K2 has 384."""

MAX_TOP_K = 16
"""(token, expert) pairs per token; DeepSeek-V3 routes to 8."""

MAX_LAYER = 1023
"""Layer index; DeepSeek-V3 has 62 with its MTP layer."""

MAX_DEADLINE_MS = 60_000
"""The longest time a request may stay at a holder; a token that waits longer has failed anyway."""

MAX_DURATION_MS = 3_600_000
"""Every other duration on the wire: at most one hour (R6)."""

MAX_INFLIGHT_REQUESTS = 64
"""Requests of one peer that a node works on at a time; one decode step needs one per stream."""

MAX_INFLIGHT_BYTES = 64 * MIB
"""Request bytes of one peer in flight: two of the largest frames."""

MAX_CONNECTIONS = 512
"""Lanes a node keeps open in all; three per peer."""

MAX_CONNECTIONS_PER_PEER = 6
"""Two sessions of three lanes: one may still be closing while its successor opens."""

MAX_CONNECTIONS_PER_ORIGIN = 256
"""Lanes of one IPv4 address or IPv6 /64: half of all, eighty clients behind one router."""

MAX_HALF_OPEN = 256
"""Connections of a node that have not finished their handshake; one more cuts the oldest of the origin with most. With
`MAX_CONNECTIONS` they stay below the 1,024 files that a process commonly may open."""

MAX_HALF_OPEN_PER_ORIGIN = 192
"""Of one origin; one more is refused. Sixty-four clients behind one router may come at once, as the rate allows."""

HANDSHAKES_PER_S = 128
"""TLS handshakes that a node begins, in all: each costs about a millisecond before its client is known."""

HANDSHAKE_BURST = 512
"""As many lanes as a node keeps may come at once."""

HANDSHAKES_PER_S_PER_ORIGIN = 64
"""Of one origin: twenty clients a second behind one router; half of all."""

HANDSHAKE_BURST_PER_ORIGIN = 192
"""Sixty-four clients that come at once behind one router: a school's computer room."""

FRAME_GRACE_S = 10.0
"""How long a peer may keep us waiting in the middle of a frame, beside the time that its bytes take below."""

MIN_FRAME_BYTES_PER_S = 8 * KIB
"""The slowest that a frame may come: a modem. A peer that sends a byte a second is cut after `FRAME_GRACE_S`."""

MAX_UNFINISHED_BYTES = 256 * MIB
"""What a node holds of frames that are not complete, in all; the lane that passes it is cut."""

IDLE_S = 60.0
"""Who says nothing for so long is asked by PING; when lanes run out, a session without requests for so long goes."""

PONG_TIMEOUT_S = 15.0
"""Who does not answer that PING is gone: a machine that lost power, a cable, a client that only holds places."""

MAX_PIECE_BYTES = 4096 * MIB
"""A piece of a model: an expert of DeepSeek-V3 has 44 MB, of Mixtral 8x22B in bf16 604 MB; DeepSeek-V3's embedding, the
largest tensor of its trunk, 1.85 GB."""

MAX_CHUNK_BYTES = 256 * KIB
"""What one CHUNK carries of a piece: 2 ms at 1 Gbit/s, so that a prefill frame on `bulk` waits for little."""

WRITE_HIGH_WATER_BYTES = 1 * MIB
"""A lane's send buffer: beyond it the writer waits, which is the back-pressure."""

MAX_RECORD_BYTES = 8 * KIB
"""A signed node record (R12). Kimi K2's 61 layers of 384 experts, all held and as many coming, take 6.4 KiB."""

MAX_REVOCATION_BYTES = 2 * KIB
"""A signed revocation list."""

RECORD_TTL_S = 90.0
"""A node is gone from the directory so long after its last pulse."""

PULSE_PERIOD_S = 40.0
"""Between two pulses of our nodes: a keeper says at once whether it took one, and who did not is replaced."""

PULSE_STEP_S = 5.0
"""Time that one place in a chain of pulses stands for: a record lives up to this much shorter than it might."""

MAX_PULSE = 1440
"""The last place in a chain: two hours, then a record is signed anew. Making a chain takes a millisecond."""

MAX_RECORD_TTL_S = 120.0
"""How far ahead of our clock, skew aside, what is found may end."""

MAX_CLOCK_SKEW_S = 60.0
"""How far two volunteers' clocks may differ before records are refused."""

MAX_ADDRESSES = 8
"""Addresses in a record."""

MAX_ADDRESS_BYTES = 128
"""One address; the longest useful libp2p relay address is just below."""

MAX_HOLDERS_PER_MODEL = 1024
"""Records of one model that a peer keeps and reads: 30 KiB of tags and pulses."""

MAX_MODELS_PER_HOLDER = 4
"""Models that one peer may have a record of at a keeper; a node serves one."""

MAX_KEPT_RECORDS = 4096
"""Records that one peer keeps, of all models: 32 MiB at most."""

MAX_TAGS_PER_SYNC = 32
"""Records that are asked for at a time: a reply of 260 KiB at most."""

MAX_SYNC_BYTES = 320 * KIB
"""A reply to SYNC: 32 records with their seals, 1,024 tags with their pulses, one revocation list."""

MAX_REVOKED_TOKENS = 192
"""Tokens that a private swarm's revocation list names: 1.7 kB with keys and signature, within one record's size."""
