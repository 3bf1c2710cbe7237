"""Known-answer challenges: does this holder compute this expert at all?

A probe is one row of +-1, the same for everybody, and its answer is in the manifest, summarised. A holder that passes
runs the right weights with the right arithmetic; a record is only a hint until then (DESIGN §5). It catches mistakes:
wrong or damaged weights, another format, a broken kernel. It does not catch a cheat, who knows the probe as we do: that
is the work of audits. Knows one expert's answer; knows no network.

All signs come from BLAKE3 in its extendable-output mode: derive_key context `CONTEXT`, key material u32 layer, u32
expert, little-endian. The output is cut into vectors of ceil(hidden / 8) bytes, bit 0 of byte 0 first, 1 meaning -1:
first the input, then the projections.
"""

import numpy as np
import torch
from blake3 import blake3

from shoal.protocol.ids import ExpertId, LayerId

CONTEXT = "shoal 2026-11 probe v1"

NUM_PROJECTIONS = 8
"""Random +-1 directions in which the answer is recorded: 32 bytes for an answer of 28 KiB."""

SUMMARY_FLOATS = NUM_PROJECTIONS + 1
SUMMARY_BYTES = 4 * SUMMARY_FLOATS

TOLERANCE = 2e-2
"""Relative error that passes: five times the 0.4 % by which rounding 1 differs from the recorded rounding 0 (largest of
24 experts; at DeepSeek-V3's widths 0.35 %), so that no draw of eight projections refuses an honest holder. int4 weights
by absolute maximum are 21 % away and fail, and so does another expert's answer (140 %). int8 weights, at 0.7-2.2 %,
mostly pass: telling those apart takes audits under canonical rounding (security-and-reliability §0.2)."""


def probe_input(layer: LayerId, expert: ExpertId, hidden: int) -> torch.Tensor:
    """The challenge: f32[1, hidden] of +-1, exact in every format of the wire."""
    return _signs(layer, expert, hidden)[:1].clone()


def summarize(layer: LayerId, expert: ExpertId, answer: torch.Tensor) -> torch.Tensor:
    """What the manifest records of an answer: f32[9], eight projections and the root mean square.

    answer: f32[H], the expert's output for the probe with weight 1. Projections are divided by sqrt(H), so that each is
    as large as the root mean square, on average.
    """
    values = answer.double()
    projections = _signs(layer, expert, len(answer))[1:].double() @ values / len(answer) ** 0.5
    return torch.cat([projections, values.square().mean().sqrt()[None]]).float()


def agrees(expected: torch.Tensor, layer: LayerId, expert: ExpertId, answer: torch.Tensor) -> bool:
    """Whether an answer fits a recorded summary, within `TOLERANCE` of the answer's root mean square.

    expected: f32[9] · answer: f32[H]. The projections' error is averaged over all eight and compared with the root mean
    square, not with each projection, which may happen to be near zero.
    """
    if answer.ndim != 1 or not bool(answer.isfinite().all()):
        return False
    error = (summarize(layer, expert, answer) - expected).double()
    scale = float(expected[-1])
    is_in_place = float(error[:-1].square().mean().sqrt()) <= TOLERANCE * scale
    return is_in_place and abs(float(error[-1])) <= TOLERANCE * scale


def encode_summary(summary: torch.Tensor) -> bytes:
    """f32[9] as 36 bytes, little-endian."""
    return summary.numpy().astype("<f4").tobytes()


def decode_summary(raw: bytes) -> torch.Tensor:
    """The reverse of `encode_summary`."""
    return torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))


def _signs(layer: LayerId, expert: ExpertId, hidden: int) -> torch.Tensor:
    """f32[1 + NUM_PROJECTIONS, hidden] of +-1."""
    material = layer.to_bytes(4, "little") + expert.to_bytes(4, "little")
    row_bytes = -(-hidden // 8)
    raw = blake3(material, derive_key_context=CONTEXT).digest(length=(1 + NUM_PROJECTIONS) * row_bytes)
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little").reshape(1 + NUM_PROJECTIONS, -1)
    return torch.from_numpy(1.0 - 2.0 * bits[:, :hidden].astype(np.float32))
