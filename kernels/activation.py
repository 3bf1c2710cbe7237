"""What an expert does between its matrices, as numbers: every family's activation is one formula with three parameters.

    g = min(gate, limit)     u = max(-limit, min(up, limit))     h = g * sigmoid(alpha * g) * (u + up_offset)

`gate` and `up` include their biases, and so does `down` its own. Canonical rounding 1 (docs/adr/0004, 0008): sums and
biases are added in fp32, gate and up rounded to bf16, clamped, h rounded to bf16, a weighted down + bias rounded to
bf16. NaN stays NaN through every clamp. Sources beside each constant. Knows no weights and no devices.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Activation:
    """The formula's parameters. The default is SwiGLU with SiLU (arXiv 2002.05202): h = silu(gate) * up.

    Raises:
        ValueError: a limit that is NaN or not above 0, or an alpha or offset that is not a positive, or not a finite,
            number.
    """

    limit: float = math.inf
    """Above it gate is cut off, and up on both sides; infinite: no clamp."""
    alpha: float = 1.0
    """The sigmoid's factor; 1 is SiLU, 1.702 makes it an approximation of GELU (arXiv 1606.08415 §2)."""
    up_offset: float = 0.0
    """Added to up after its clamp."""

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"an activation's limit is {self.limit}, expected a number above 0 (infinite: none)")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"an activation's alpha is {self.alpha}, expected a finite number above 0")
        if not math.isfinite(self.up_offset):
            raise ValueError(f"an activation's up_offset is {self.up_offset}, expected a finite number")


SILU = Activation()
"""DeepSeek-V2 and V3, Kimi-K2, Qwen3-MoE, GLM-4.5, MiniMax-M2, Mixtral: `hidden_act` silu."""

GPT_OSS = Activation(limit=7.0, alpha=1.702, up_offset=1.0)
"""gpt-oss: `swiglu` of openai/gpt-oss gpt_oss/torch/model.py (alpha 1.702, limit 7.0: `swiglu_limit`); the same as
`GptOssExperts._apply_gate` of transformers 5.23."""

DEEPSEEK_V4 = Activation(limit=10.0)
"""DeepSeek-V4: `DeepseekV4Experts._apply_gate` of transformers 5.23, `swiglu_limit` 10: clamped before SiLU."""
