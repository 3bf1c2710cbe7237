"""What a client of a swarm can set: one frozen object, made by the CLI or by the library's user."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from shoal.client.engine.engine_settings import CHUNKS_PER_PASS, PREFILL_AHEAD

DTYPES = ("fp32", "bf16")
TRUNK_FORMATS = ("dense", "as-published", "fp8_block", "bf16", "int8_g128", "int4_g32", "int4_g128", "mxfp4")
CHANNELS = ("direct", "libp2p")
LAN_USES = ("members", "any", "off")
ACTIVATIONS = ("exact", "bf16", "fp8", "int8", "auto")
SPECULATIONS = ("off", "auto", "mtp", "ngram")


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """Settings of one client. `Swarm.join` checks them."""

    model: Path
    """Checkpoint directory: the trunk is read from it and the swarm must hold its experts."""

    join: tuple[str, ...]
    """Multiaddrs of peers, or one invite token. Empty: whom the LAN has, if `lan` is any."""

    dtype: Annotated[str, Meta(pattern=f"^({'|'.join(DTYPES)})$")] = "fp32"
    """Arithmetic of trunk and experts: `fp32` (rounding 0) or `bf16` (rounding 1)."""

    channel: Annotated[str, Meta(pattern=f"^({'|'.join(CHANNELS)})$")] = "direct"
    """How holders are reached: `direct` (TLS 1.3) or `libp2p` (p2pd streams)."""

    cache_dir: Path | None = None
    """Where manifests that we computed are kept. None: the platform's user cache."""

    identity: Path | None = None
    """Key file (0600), created when missing. None: a new identity for this run, which leaves no trail."""

    max_streams: int = 32
    """Answers that grow at the same time, sharing every pass of the trunk; 1..256."""

    max_waiting: int = 128
    """Requests that wait for a place; one more is refused with Busy."""

    kv_cache_bytes: int | None = None
    """Memory for what the trunk remembers of all conversations together. None: half of the memory that is free once the
    trunk is loaded, as measured then: the other half is for the system and the passes."""

    threads: int = 0
    """Threads of the trunk (torch's, so of the whole process). 0: as they are, by default one per core."""

    trunk_format: Annotated[str, Meta(pattern=f"^({'|'.join(TRUNK_FORMATS)})$")] = "dense"
    """How the trunk's plain linears are held. `dense`: torch tensors of `dtype`. `as-published`: the checkpoint's own
    bytes (DeepSeek-V3's trunk: 19.1 GB), the same answers up to the order of sums. The others quantize at load:
    `int4_g32` 12.4 GB, `int4_g128` 11.7 GB, with the errors of docs/adr/0009. All but `dense` need the C++ kernels."""

    requires_coverage: bool = True
    """Whether joining a swarm in which an expert has no holder fails. A gateway comes up all the same and says why it
    is not ready; what it is asked meanwhile ends with CoverageGap."""

    max_wait_s: float = 30.0
    """How long a token may wait for experts whose holders are all busy or gone before it is an error; then the answer
    goes on at the same token. Most restarts are shorter. 0: not at all."""

    lan: Annotated[str, Meta(pattern=f"^({'|'.join(LAN_USES)})$")] = "members"
    """Whether to look on the LAN, by multicast DNS, if no peer of `join` answers. `members`: for the private swarm that
    we have a token of. `any`: for open swarms of this model too, without `join`; their holders are strangers, who could
    read the prompts, so nobody joins them by accident. `off`: never."""

    speculate: Annotated[str, Meta(pattern=f"^({'|'.join(SPECULATIONS)})$")] = "off"
    """Who guesses tokens for passes to verify: `mtp` (the model's own layer, its experts in this process), `ngram` (the
    text, where it repeats itself), `auto` (both, as far as checkpoint and memory have them) or nobody. As many as pay
    by measurement; the answer is the same."""

    activations: Annotated[str, Meta(pattern=f"^({'|'.join(ACTIVATIONS)})$")] = "exact"
    """How hidden states travel to holders, and partial sums back. `exact`: nothing is lost. `bf16`, `fp8`, `int8`:
    fewer bytes and other bits (docs/PERFORMANCE.md says what that costs), where the holder takes them, else exact.
    `auto`: exact as long as a token's bytes take at most a millisecond on the measured link to the holder, else bf16,
    else int8."""

    prefill_ahead: Annotated[int, Meta(ge=1, le=CHUNKS_PER_PASS)] = PREFILL_AHEAD
    """Chunks of a long prompt, 256 tokens each, that are under way at the same time: while some wait for their experts,
    others compute. More than 4 bring something only where a round trip takes longer than computing four chunks; fewer
    leave holders and link to others, and frames in memory; 1: one after another."""
