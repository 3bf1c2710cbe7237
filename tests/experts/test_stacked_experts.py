"""Experts of gpt-oss and DeepSeek-V4 from files in their published layouts; the oracle is transformers' own code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV4Config, GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from shoal.experts.backend import ExpertBackend, ExpertWeights
from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.kernels import cpu
from shoal.kernels.cpu import CpuKernels
from shoal.kernels.mxfp4 import dequantize_mxfp4, quantize_mxfp4
from shoal.protocol.errors import CheckpointError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding, WeightFormat

HIDDEN, INTER, NUM_EXPERTS, TOP_K = 96, 160, 4, 2
LOUD = 6.0
"""Rows are so large that clamps at 7 and 10 are met."""

PREFIX = "model.layers.1.mlp.experts."
LAYER = LayerId(1)

GPT_OSS = GptOssConfig(
    num_hidden_layers=2, num_local_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K, hidden_size=HIDDEN,
    intermediate_size=INTER, vocab_size=64, head_dim=8, num_attention_heads=2, num_key_value_heads=1,
)  # fmt: skip

Tensors = dict[str, torch.Tensor]


def gpt_oss_experts(seed: int) -> GptOssExperts:
    torch.manual_seed(seed)
    experts = GptOssExperts(GPT_OSS).requires_grad_(False)
    experts.gate_up_proj.normal_(std=HIDDEN**-0.5)
    experts.down_proj.normal_(std=INTER**-0.5)
    experts.gate_up_proj_bias.normal_()
    experts.down_proj_bias.normal_()
    return experts.bfloat16()


def pack_gpt_oss(experts: GptOssExperts) -> Tensors:
    """The published blocks and scales of one layer, and back into `experts` what they mean."""
    packed = {"gate_up_proj_bias": experts.gate_up_proj_bias, "down_proj_bias": experts.down_proj_bias}
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(experts, name)  # [E, in, out]
        stored = [quantize_mxfp4(each.T.contiguous()) for each in weight]
        blocks = torch.stack([data for data, _ in stored]).unflatten(2, (-1, 16))
        scales = torch.stack([scale.view(torch.uint8) for _, scale in stored])
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        weight.copy_(convert_moe_packed_tensors(blocks, scales))
    return packed


def write_gpt_oss(directory: Path, *, is_packed: bool) -> GptOssExperts:
    """A checkpoint of two layers; the experts of layer 1, with the values that are in it."""
    directory.mkdir()
    layers, tensors = [gpt_oss_experts(seed) for seed in (0, 1)], dict[str, torch.Tensor]()
    for i, experts in enumerate(layers):
        own = pack_gpt_oss(experts) if is_packed else dict(experts.named_parameters())
        tensors |= {f"model.layers.{i}.mlp.experts.{name}": each.contiguous() for name, each in own.items()}
        tensors[f"model.layers.{i}.mlp.router.weight"] = torch.randn(NUM_EXPERTS, HIDDEN).bfloat16()
        tensors[f"model.layers.{i}.mlp.router.bias"] = torch.randn(NUM_EXPERTS).bfloat16()
    quantization = {"quantization_config": {"quant_method": "mxfp4"}} if is_packed else {}
    write(directory, tensors, GPT_OSS.to_dict() | quantization)
    return layers[1]


def write(directory: Path, tensors: Tensors, config: dict[str, object]) -> None:
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


def answers(directory: Path, backend: ExpertBackend, layer: LayerId, rounding: Rounding) -> torch.Tensor:
    """Every expert on the same rows: f32[E, N, H]."""
    x = rows()
    n = len(x)
    with ModelStore.open(directory, directory.parent / "cache") as store:
        packed = [backend.pack(store.spec.expert, store.expert(layer, ExpertId(i))) for i in range(NUM_EXPERTS)]
    run = [backend.run([each], x, torch.arange(n), [0, n], torch.ones(n), rounding) for each in packed]
    return torch.stack(run)


def rows() -> torch.Tensor:
    return (LOUD * torch.randn(11, HIDDEN, generator=torch.Generator().manual_seed(7))).bfloat16().float()


def theirs(experts: GptOssExperts | DeepseekV4Experts) -> torch.Tensor:
    x, experts = rows(), experts.float()
    one = torch.ones(len(x), 1)
    return torch.stack([experts(x, torch.full((len(x), 1), i), one) for i in range(NUM_EXPERTS)])


def distance(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


BACKENDS: list[Callable[[], ExpertBackend]] = [ReferenceBackend]
if cpu.is_available():
    BACKENDS.append(lambda: CpuBackend(CpuKernels(2)))


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_experts_of_gpt_oss_answer_as_in_transformers(
    tmp_path: Path, make_backend: Callable[[], ExpertBackend], is_packed: bool
) -> None:
    expected = theirs(write_gpt_oss(tmp_path / "model", is_packed=is_packed))
    for rounding, bound in ((Rounding.FP32, 1e-6), (Rounding.BF16, 5e-3)):
        assert distance(answers(tmp_path / "model", make_backend(), LAYER, rounding), expected) <= bound


def test_a_gpt_oss_model_that_transformers_saves_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GptOssForCausalLM(GPT_OSS).bfloat16().requires_grad_(False)
    for experts in (layer.mlp.experts for layer in model.model.layers):
        experts.load_state_dict(gpt_oss_experts(5).state_dict())
    model.save_pretrained(tmp_path / "model")
    ours = answers(tmp_path / "model", ReferenceBackend(), LAYER, Rounding.FP32)
    assert distance(ours, theirs(model.model.layers[1].mlp.experts)) <= 1e-6


def test_the_published_blocks_are_kept_as_they_are(tmp_path: Path) -> None:
    experts = write_gpt_oss(tmp_path / "model", is_packed=True)
    with ModelStore.open(tmp_path / "model", tmp_path / "cache") as store:
        before = store.bytes_read
        stored = store.expert(LAYER, ExpertId(2))
        read = store.bytes_read - before
    assert stored.format is WeightFormat.MXFP4
    assert stored.gate.scale is not None
    assert torch.equal(
        dequantize_mxfp4(stored.gate.data, stored.gate.scale), experts.gate_up_proj[2, :, 0::2].T.float()
    )
    assert read == size_of(stored), "only one expert's bytes are read"


def size_of(stored: ExpertWeights) -> int:
    assert stored.biases is not None
    weights = (stored.gate, stored.up, stored.down)
    parts = [*(each.data for each in weights), *(each.scale for each in weights), *stored.biases]
    return sum(part.nbytes for part in parts if part is not None)


@pytest.mark.parametrize("name", ["gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_bias"])
def test_a_byte_that_changed_is_found_in_biases_and_scales_too(tmp_path: Path, name: str) -> None:
    write_gpt_oss(tmp_path / "model", is_packed=True)
    with ModelStore.open(tmp_path / "model", tmp_path / "cache") as store:
        manifest = store.manifest
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors[PREFIX + name].view(torch.uint8).view(-1)[-1] ^= 1
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with ModelStore.open(tmp_path / "model", tmp_path / "cache") as damaged:
        store = ModelStore(damaged._files, manifest)
        store.expert(LAYER, ExpertId(0))
        with pytest.raises(CheckpointError, match="not the bytes"):
            store.expert(LAYER, ExpertId(NUM_EXPERTS - 1))


Edit = Callable[[torch.Tensor], torch.Tensor | None]
BAD_STACKS: dict[str, tuple[str, Edit, str]] = {
    "no bias": ("down_proj_bias", lambda t: None, "missing"),
    "no scales": ("gate_up_proj_scales", lambda t: None, "missing"),
    "a bias too short": ("gate_up_proj_bias", lambda t: t[:, :INTER], "expected"),
    "an expert too few": ("down_proj_blocks", lambda t: t[:-1], "expected"),
    "blocks not cut in groups": ("down_proj_blocks", lambda t: t.flatten(2), "expected"),
    "scales that are no bytes": ("gate_up_proj_scales", lambda t: t.float(), "expected"),
    "weights not transposed": ("down_proj", lambda t: t.mT, "expected"),
    "a dtype that no format has": ("gate_up_proj", lambda t: t.half(), "dtype F16"),
    "a bias that is not finite": ("down_proj_bias", lambda t: t * torch.inf, "finite"),
    "a scale that is NaN": ("down_proj_scales", lambda t: t | 0xFF, "finite"),
}


@pytest.mark.parametrize("what", BAD_STACKS)
def test_a_stacked_layer_that_is_not_what_it_should_be_is_refused(tmp_path: Path, what: str) -> None:
    name, edit, words = BAD_STACKS[what]
    write_gpt_oss(tmp_path / "model", is_packed=name not in ("down_proj", "gate_up_proj"))
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    edited = edit(tensors.pop(PREFIX + name))
    if edited is not None:
        tensors[PREFIX + name] = edited.contiguous()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        ModelStore.open(tmp_path / "model", tmp_path / "cache").close()


def deepseek_v4_experts() -> tuple[DeepseekV4Experts, Tensors]:
    """Experts and the tensors of a published layer 0: e2m1 pairs as I8, one E8M0 per 32."""
    config = DeepseekV4Config(hidden_size=HIDDEN, moe_intermediate_size=INTER, n_routed_experts=NUM_EXPERTS)
    torch.manual_seed(3)
    experts, tensors = DeepseekV4Experts(config).requires_grad_(False), {}
    for i in range(NUM_EXPERTS):
        values = {}
        for name, shape in (("w1", (INTER, HIDDEN)), ("w3", (INTER, HIDDEN)), ("w2", (HIDDEN, INTER))):
            data, scale = quantize_mxfp4(torch.randn(shape) * shape[1] ** -0.5)
            tensors[f"layers.0.ffn.experts.{i}.{name}.weight"] = data.view(torch.int8)
            tensors[f"layers.0.ffn.experts.{i}.{name}.scale"] = scale
            values[name] = dequantize_mxfp4(data, scale)
        experts.gate_up_proj[i] = torch.cat([values["w1"], values["w3"]])
        experts.down_proj[i] = values["w2"]
    return experts, tensors


V4_CONFIG: dict[str, object] = {
    "model_type": "deepseek_v4", "hidden_size": HIDDEN, "moe_intermediate_size": INTER, "num_hidden_layers": 1,
    "num_hash_layers": 1, "n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K, "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0, "scoring_func": "sqrtsoftplus", "norm_topk_prob": True, "hidden_act": "silu",
}  # fmt: skip


@pytest.mark.parametrize("make_backend", BACKENDS)
def test_experts_of_deepseek_v4_answer_as_in_transformers(
    tmp_path: Path, make_backend: Callable[[], ExpertBackend]
) -> None:
    experts, tensors = deepseek_v4_experts()
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", tensors, V4_CONFIG)
    for rounding, bound in ((Rounding.FP32, 1e-6), (Rounding.BF16, 5e-3)):
        ours = answers(tmp_path / "model", make_backend(), LayerId(0), rounding)
        assert distance(ours, theirs(experts)) <= bound


def test_bytes_are_no_weights_in_a_family_that_packs_none(tmp_path: Path) -> None:
    _, tensors = deepseek_v4_experts()
    (tmp_path / "model").mkdir()
    renamed = {
        "model." + name.replace("ffn", "block_sparse_moe").replace(".scale", ".weight_scale_inv"): each
        for name, each in tensors.items()
    }
    mixtral = {
        "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": INTER, "num_hidden_layers": 1,
        "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K,
    }  # fmt: skip
    write(tmp_path / "model", renamed, mixtral)
    with pytest.raises(CheckpointError, match="dtype I8"):
        ModelStore.open(tmp_path / "model", tmp_path / "cache").close()
