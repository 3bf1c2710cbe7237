"""From the network to an official-looking checkpoint directory, and back.

The last stop of training, and the only file here that touches the checkpoint format: DeepSeek-V3's tensor names, fp8
e4m3 weights with `weight_scale_inv` (fp32 powers of two per 128x128 block), bf16 embeddings, norms and router, fp32
correction bias, the MTP layer as layer `num_hidden_layers` with its own copies of embedding and head, shards with an
index, and shoal's manifest. `load_network` reads only what `export` wrote; the client has its own reader for
checkpoints of any origin.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from shoal.experts.manifest import MANIFEST_FILE, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.simulations.demo_model.blocks import dequantize, quantize
from shoal.simulations.demo_model.bpe import token_id, tokenizer_config
from shoal.simulations.demo_model.network import Network
from shoal.simulations.demo_model.prompts import BOS, CHAT_TEMPLATE, EOS
from shoal.simulations.demo_model.shape import Shape, config_json, shape_from_config

SHARD_BYTES = 4 << 20
"""Small enough that the demonstration has several shards, as real checkpoints do."""

SCALE = "_scale_inv"
"""Suffix of a scale tensor's name; in spite of it, the scale multiplies."""

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
"""Suggested sampling, written to generation_config.json: what the card's samples use."""


def export(network: Network, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the checkpoint to `directory`, replacing what was there only when all of it is written."""
    fresh = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _write_shards(dict(official_tensors(network)), fresh)
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    _write_json(fresh / "config.json", config_json(network.shape, bos, eos))
    _write_json(fresh / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, **SAMPLING})
    _write_json(fresh / "tokenizer_config.json", tokenizer_config(CHAT_TEMPLATE, network.shape.max_position_embeddings))
    tokenizer.save(str(fresh / "tokenizer.json"), pretty=False)
    write_manifest(make_manifest(fresh), fresh / MANIFEST_FILE)  # so that no node has to hash the whole model first
    _replace(directory, fresh)


def official_tensors(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint under its official name, in layer order."""
    for name, weight in unstacked(network):
        if _is_fp8(name):
            quantized, scales = quantize(weight)
            yield name, quantized
            yield name + SCALE, scales
        elif name.endswith("e_score_correction_bias"):
            yield name, weight.float()
        else:
            yield name, weight.bfloat16()
    mtp = f"model.layers.{network.shape.num_hidden_layers}"
    yield f"{mtp}.embed_tokens.weight", network.model.embed_tokens.weight.detach().bfloat16().clone()
    yield f"{mtp}.shared_head.head.weight", network.lm_head.weight.detach().bfloat16().clone()


def load_network(directory: Path, dropout: float = 0.0) -> tuple[Network, Tokenizer]:
    """The exported weights, dequantized exactly to fp32, in a network ready for evaluation."""
    shape = shape_from_config(json.loads((directory / "config.json").read_text()))
    tensors = {k: v for shard in sorted(directory.glob("*.safetensors")) for k, v in load_file(shard).items()}
    weights = {
        name: dequantize(tensor, tensors[name + SCALE]) if name + SCALE in tensors else tensor.float()
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }
    network = Network(shape, dropout)
    network.load_state_dict({name: _stacked(name, weights, shape) for name in network.state_dict()})
    return network.eval(), Tokenizer.from_file(str(directory / "tokenizer.json"))


def unstacked(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The network's own tensors with the stacked experts taken apart, still in fp32."""
    for name, weight in network.state_dict().items():
        if ".mlp.experts." not in name:
            yield name, weight
            continue
        prefix, projection = name.rsplit(".", 1)
        for expert, matrix in enumerate(weight):
            yield f"{prefix}.{expert}.{projection}.weight", matrix.contiguous()


def _stacked(name: str, weights: dict[str, Tensor], shape: Shape) -> Tensor:
    if ".mlp.experts." not in name:
        return weights[name]
    prefix, projection = name.rsplit(".", 1)
    return torch.stack([weights[f"{prefix}.{e}.{projection}.weight"] for e in range(shape.n_routed_experts)])


def _is_fp8(name: str) -> bool:
    return "_proj" in name and not name.endswith("eh_proj.weight")


def _write_shards(tensors: dict[str, Tensor], directory: Path) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        # A weight and its scale share a shard: the scale's name sorts after and is never first in a new one.
        if tensor.nbytes > room and not name.endswith(SCALE):
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # safetensors writes for the owner alone
        places.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(directory: Path, fresh: Path) -> None:
    stale = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(stale, ignore_errors=True)
    if directory.exists():
        directory.rename(stale)
    fresh.rename(directory)
    shutil.rmtree(stale, ignore_errors=True)
