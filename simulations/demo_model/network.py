"""The training network: DeepSeek-V3's architecture over whole sequences, batched, in plain torch.

Text has become token ids before this file and becomes text again after it. Parameter names are the official ones
(`model.layers.3.self_attn.q_a_proj.weight`, …) except that the routed experts of a layer are stacked
(`mlp.experts.gate_proj: [E, I, H]`); `export` takes them apart. There is no KV cache and no fp8 arithmetic here:
inference is the client's work. Formulas: DeepSeek-V3's inference/model.py and arXiv 2412.19437; where they differ in
precision, the fp32 router of V3.2.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.simulations.demo_model.blocks import round_through
from shoal.simulations.demo_model.shape import Shape


@dataclass(frozen=True, slots=True)
class Prediction:
    """Logits for a batch of sequences of `T` tokens."""

    main: Tensor
    """`[B, T, V]`: row t predicts token t+1."""
    mtp: Tensor
    """`[B, T-1, V]`: row t has seen token t+1 and predicts token t+2."""


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32 (arXiv 1910.07467), cast once to what the products after it compute in."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)
        is_cast = torch.is_autocast_enabled(x.device.type)
        return normed.to(torch.get_autocast_dtype(x.device.type)) if is_cast else normed


class Linear(nn.Module):
    """A bias-free linear map whose weight can be rounded to the fp8 grid on the fly."""

    def __init__(self, width_in: int, width_out: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in) * gain * width_in**-0.5)
        self.is_rounded = False

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, round_through(self.weight) if self.is_rounded else self.weight)


def yarn_frequencies(shape: Shape) -> Tensor:
    """Rotary frequencies after YaRN: fast pairs kept, slow pairs divided by `factor`, a ramp between."""
    yarn, width = shape.yarn, shape.qk_rope_head_dim
    plain = shape.rope_theta ** -(torch.arange(0, width, 2).float() / width)

    def pair_turning(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(shape.rope_theta))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), width - 1)
    ramp = ((torch.arange(width // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def softmax_scale(shape: Shape) -> float:
    """`qk_head_dim^-0.5 * m^2` with YaRN's `m = 0.1 * mscale_all_dim * ln(factor) + 1`."""
    m = 0.1 * shape.yarn.mscale_all_dim * math.log(shape.yarn.factor) + 1.0
    return float(shape.qk_head_dim**-0.5 * m * m)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate interleaved pairs `(x0, x1), (x2, x3), …` of `x: [B, T, heads, R]` by `angles: [T, R/2]`."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head latent attention: queries and keys/values pass through narrow latents."""

    def __init__(self, shape: Shape, out_gain: float) -> None:
        super().__init__()
        self.shape = shape
        heads = shape.num_attention_heads
        self.q_a_proj = Linear(shape.hidden_size, shape.q_lora_rank)
        self.q_a_layernorm = RMSNorm(shape.q_lora_rank, shape.rms_norm_eps)
        self.q_b_proj = Linear(shape.q_lora_rank, heads * shape.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(shape.hidden_size, shape.kv_lora_rank + shape.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(shape.kv_lora_rank, shape.rms_norm_eps)
        self.kv_b_proj = Linear(shape.kv_lora_rank, heads * (shape.qk_nope_head_dim + shape.v_head_dim))
        self.o_proj = Linear(heads * shape.v_head_dim, shape.hidden_size, gain=out_gain)
        self.scale = softmax_scale(shape)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """`x: [B, T, H]`, `angles: [T, R/2]` -> `[B, T, H]`."""
        shape = self.shape
        heads = (*x.shape[:2], shape.num_attention_heads, -1)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(heads)
        q_nope, q_rope = q.split([shape.qk_nope_head_dim, shape.qk_rope_head_dim], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([shape.kv_lora_rank, shape.qk_rope_head_dim], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(heads)
        k_nope, v = kv.split([shape.qk_nope_head_dim, shape.v_head_dim], dim=-1)
        k_rope = rotate(k_rope.unsqueeze(2), angles).expand(-1, -1, shape.num_attention_heads, -1)
        q = torch.cat((q_nope, rotate(q_rope, angles)), dim=-1)
        k = torch.cat((k_nope, k_rope), dim=-1)
        return self.o_proj(self._attend(q, k, v))  # type: ignore[no-any-return]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Three batched products beat torch's fused CPU kernel here (430 against 680 ms a layer and step, forward and
        # backward in bf16, 16 x 512 tokens): sequences are short and its backward is slow.
        batch, length = q.shape[:2]
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        future = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        scores = torch.baddbmm(future.expand(len(q), -1, -1), q, k.mT, alpha=self.scale)
        mixed = scores.softmax(dim=-1).to(v.dtype) @ v
        return mixed.view(batch, -1, length, v.shape[-1]).transpose(1, 2).flatten(2)


class DenseMLP(nn.Module):
    """SwiGLU feed-forward: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden: int, inter: int, out_gain: float) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, inter)
        self.up_proj = Linear(hidden, inter)
        self.down_proj = Linear(inter, hidden, gain=out_gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Routes:
    """What the router chose for `T` tokens."""

    topk_idx: Tensor
    """int64 `[T, K]`."""
    topk_weights: Tensor
    """fp32 `[T, K]`, already normalised and scaled."""


class Router(nn.Module):
    """Sigmoid scores, the best groups by their two best experts, then top-k; the bias chooses but never weighs."""

    e_score_correction_bias: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        # Near-equal scores at first: otherwise all tokens rush to the same experts before the biases can answer.
        self.weight = nn.Parameter(torch.randn(shape.n_routed_experts, shape.hidden_size) * 0.01)
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.n_routed_experts))

    def forward(self, x: Tensor) -> Routes:
        """`x: [T, H]` -> routes, computed in fp32 whatever the surroundings use."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        topk_idx = self._choose(scores.detach() + self.e_score_correction_bias)
        weights = scores.gather(1, topk_idx)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routes(topk_idx, weights * self.shape.routed_scaling_factor)

    def _choose(self, biased: Tensor) -> Tensor:
        groups = biased.view(len(biased), self.shape.n_group, -1)
        kept = groups.topk(2, dim=-1).values.sum(dim=-1).topk(self.shape.topk_group, dim=-1).indices
        dropped = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, kept, False)
        masked = groups.masked_fill(dropped.unsqueeze(-1), float("-inf")).flatten(1)
        return masked.topk(self.shape.num_experts_per_tok, dim=-1).indices

    @torch.no_grad()
    def balance(self, load: Tensor, step: float) -> None:
        """Auxiliary-loss-free balancing (arXiv 2408.15664): `bias += step * sign(mean load - load)`."""
        self.e_score_correction_bias += step * torch.sign(load.mean() - load)


class Experts(nn.Module):
    """All routed experts of a layer, stacked, so that one batched product runs them all."""

    def __init__(self, shape: Shape, out_gain: float) -> None:
        super().__init__()
        num, hidden, inter = shape.n_routed_experts, shape.hidden_size, shape.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.randn(num, inter, hidden) * hidden**-0.5)
        self.up_proj = nn.Parameter(torch.randn(num, inter, hidden) * hidden**-0.5)
        self.down_proj = nn.Parameter(torch.randn(num, hidden, inter) * out_gain * inter**-0.5)
        self.is_rounded = False

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """`x: [T, H]` -> `[T, H]`: every chosen expert's answer, weighted and summed.

        Rows are gathered per expert and padded to the busiest one (routing is balanced, so padding stays small);
        nothing is dropped.
        """
        rows, slots = self._pack(routes.topk_idx)
        gate, up, down = (
            round_through(weight) if self.is_rounded else weight
            for weight in (self.gate_proj, self.up_proj, self.down_proj)
        )
        packed = x.index_select(0, rows.flatten()).view(*rows.shape, -1)
        answers = (F.silu(packed @ gate.mT) * (packed @ up.mT)) @ down.mT
        chosen = answers.flatten(0, 1).index_select(0, slots.flatten()).view(*slots.shape, -1)
        return (chosen.float() * routes.topk_weights.unsqueeze(-1)).sum(dim=1)

    def _pack(self, topk_idx: Tensor) -> tuple[Tensor, Tensor]:
        """`rows: [E, C]`, the token each expert's slot reads (0 where empty: nobody reads the answer), and
        `slots: [T, K]`, the slot of every choice in the flattened `[E * C]`."""
        num_experts, flat = self.gate_proj.shape[0], topk_idx.flatten()
        order = flat.argsort(stable=True)
        load = torch.bincount(flat, minlength=num_experts)
        capacity = int(load.max())
        first = load.cumsum(0) - load
        chosen = flat[order]
        slots_in_order = chosen * capacity + torch.arange(len(flat), device=flat.device) - first[chosen]
        slots = torch.empty_like(flat).scatter(0, order, slots_in_order).view_as(topk_idx)
        rows = flat.new_zeros(num_experts * capacity).scatter(0, slots_in_order, order // topk_idx.shape[1])
        return rows.view(num_experts, capacity), slots


class MoE(nn.Module):
    """Routed experts plus the shared expert that every token passes."""

    def __init__(self, shape: Shape, out_gain: float) -> None:
        super().__init__()
        self.gate = Router(shape)
        # Routed answers arrive multiplied by routed_scaling_factor: start them smaller by as much.
        self.experts = Experts(shape, out_gain / shape.routed_scaling_factor)
        self.shared_experts = DenseMLP(
            shape.hidden_size, shape.moe_intermediate_size * shape.n_shared_experts, out_gain
        )
        self.load = torch.zeros(shape.n_routed_experts)
        """Choices per expert in the latest forward pass (for balancing and for the card)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        routes: Routes = self.gate(flat)
        self.load = torch.bincount(routes.topk_idx.flatten(), minlength=self.gate.shape.n_routed_experts).float()
        return (self.experts(flat, routes) + self.shared_experts(flat)).view_as(x)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One decoder layer: attention and feed-forward, each normed before and added after."""

    def __init__(self, shape: Shape, index: int, dropout: float) -> None:
        super().__init__()
        out_gain = (2 * shape.num_hidden_layers) ** -0.5
        self.self_attn = Attention(shape, out_gain)
        is_moe = shape.is_moe(index)
        self.mlp = MoE(shape, out_gain) if is_moe else DenseMLP(shape.hidden_size, shape.intermediate_size, out_gain)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))  # type: ignore[no-any-return]


class SharedHeadNorm(nn.Module):
    """Only a name: the checkpoint calls the MTP layer's last norm `shared_head.norm`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class MtpLayer(Layer):
    """Multi-token prediction: sees the main model's state at t and token t+1, predicts token t+2.

    `eh_proj(cat[enorm(embed(t+1)), hnorm(h_t)])`, embedding first, where `h_t` is the main model's state AFTER its
    final norm (as transformers' MTP generation and vLLM feed it). Embedding and head are the main model's.
    """

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__(shape, shape.num_hidden_layers, dropout)
        self.enorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.hnorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.eh_proj = Linear(2 * shape.hidden_size, shape.hidden_size)
        self.shared_head = SharedHeadNorm(shape)

    def draft(self, embedded_next: Tensor, state: Tensor, angles: Tensor) -> Tensor:
        """`embedded_next, state: [B, T-1, H]` -> normed state `[B, T-1, H]`, ready for the head."""
        joined = torch.cat((self.enorm(embedded_next), self.hnorm(state)), dim=-1)
        return self.shared_head.norm(self(self.eh_proj(joined), angles))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, layers (the last one is the MTP layer) and final norm; the checkpoint's `model.` prefix."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        layers = [Layer(shape, index, dropout) for index in range(shape.num_hidden_layers)]
        self.layers = nn.ModuleList([*layers, MtpLayer(shape, dropout)])
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Network(nn.Module):
    """The whole model. `dropout` applies to the embedding and to every residual branch, in training mode only."""

    angles: Tensor

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape, dropout)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.model.embed_tokens.weight, std=shape.hidden_size**-0.5)
        nn.init.zeros_(self.lm_head.weight)
        positions = torch.arange(shape.max_position_embeddings).float()
        self.register_buffer("angles", torch.outer(positions, yarn_frequencies(shape)), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids: int64[B, T]`, T at most `max_position_embeddings` -> logits `[B, T, V]`: row t predicts token t+1."""
        return self.lm_head(self._run(ids)[1])  # type: ignore[no-any-return]

    def with_drafts(self, ids: Tensor) -> Prediction:
        """As `forward`, and the MTP layer's logits beside it."""
        embedded, state = self._run(ids)
        mtp = cast(MtpLayer, self.model.layers[-1])
        # Row t of the draft takes the position of token t+1, the token it embeds.
        drafted = mtp.draft(embedded[:, 1:], state[:, :-1], self.angles[1 : ids.shape[1]])
        return Prediction(self.lm_head(state), self.lm_head(drafted))

    def _run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, and the main model's state after its final norm, both `[B, T, H]`."""
        embedded = self.dropout(self.model.embed_tokens(ids))
        state = embedded
        for layer in list(self.model.layers)[:-1]:
            state = layer(state, self.angles[: ids.shape[1]])
        return embedded, self.model.norm(state)

    def moe_layers(self) -> list[MoE]:
        """Every routed feed-forward in layer order; the last one is the MTP layer's."""
        return [layer.mlp for layer in self.model.layers if isinstance(layer, Layer) and isinstance(layer.mlp, MoE)]

    def round_weights(self, is_rounded: bool) -> None:
        """Switch rounding to the fp8 grid on or off for every weight that the checkpoint stores as fp8."""
        for name, module in self.named_modules():
            if isinstance(module, Linear | Experts):
                module.is_rounded = is_rounded and not name.endswith("eh_proj")
