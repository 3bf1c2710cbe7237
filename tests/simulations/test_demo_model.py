"""The shipped demonstration checkpoint is what its config says, and the program that makes it still works."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from shoal.simulations.demo_model import train as training
from shoal.simulations.demo_model.attribution import ATTRIBUTION_FILE, cell
from shoal.simulations.demo_model.blocks import dequantize, quantize, round_through
from shoal.simulations.demo_model.bpe import train_tokenizer
from shoal.simulations.demo_model.corpus import Document, load, split
from shoal.simulations.demo_model.evaluate import MODEL_DIR, network_bits
from shoal.simulations.demo_model.export import export, load_network, official_tensors
from shoal.simulations.demo_model.network import Network, Router
from shoal.simulations.demo_model.ngram import KneserNey
from shoal.simulations.demo_model.prompts import SPECIAL_TOKENS, as_chat, subjects_of
from shoal.simulations.demo_model.shape import TINY, Shape, shape_from_config

MODEL_BYTES_MAX = 16 << 20

TEXTS = (
    "Once upon a time there was a frog.",
    "¿Dónde está la niña? ¡Aquí!",
    "O leão não tinha coração.",
    "L’éléphant mange déjà.",
    "Hapo zamani za kale palikuwa na simba.",
    "ማንበብ እወዳለሁ",
    "كل الناس",
    "two  spaces\n\nand a tab\t🐟",
)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return load()


@pytest.fixture(scope="module")
def few(documents: list[Document]) -> list[Document]:
    """Sixteen English stories, two of them held out: a text for runs of a second."""
    english = [d for d in documents if d.kind == "story" and d.language == "en"]
    return [d for d in english if d.is_held_out][:2] + [d for d in english if not d.is_held_out][:14]


@pytest.fixture(scope="module")
def shipped() -> dict[str, torch.Tensor]:
    tensors = {}
    for shard in sorted(MODEL_DIR.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    return tensors


def test_the_shipped_checkpoint_has_the_names_shapes_and_dtypes_its_config_says(
    shipped: dict[str, torch.Tensor],
) -> None:
    shape = shape_from_config(json.loads((MODEL_DIR / "config.json").read_text()))
    assert shape == Shape()
    expected = {name: (tuple(t.shape), t.dtype) for name, t in official_tensors(Network(shape))}
    assert {name: (tuple(t.shape), t.dtype) for name, t in shipped.items()} == expected


def test_the_index_places_every_tensor_in_the_shard_that_holds_it() -> None:
    places = json.loads((MODEL_DIR / "model.safetensors.index.json").read_text())["weight_map"]
    held = {}
    for shard in MODEL_DIR.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            held.update(dict.fromkeys(file.keys(), shard.name))
    assert places == held
    assert len(set(held.values())) > 1


def test_the_model_directory_is_at_most_16_mib() -> None:
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= MODEL_BYTES_MAX


def test_every_scale_is_a_power_of_two_and_every_weight_is_finite(shipped: dict[str, torch.Tensor]) -> None:
    for name, tensor in shipped.items():
        assert torch.isfinite(tensor.float()).all(), name
        if name.endswith("_scale_inv"):
            assert tensor.dtype == torch.float32
            assert (torch.frexp(tensor).mantissa == 0.5).all(), name


def test_the_mtp_layer_repeats_embedding_and_head(shipped: dict[str, torch.Tensor]) -> None:
    mtp = f"model.layers.{Shape().num_hidden_layers}"
    assert torch.equal(shipped[f"{mtp}.embed_tokens.weight"], shipped["model.embed_tokens.weight"])
    assert torch.equal(shipped[f"{mtp}.shared_head.head.weight"], shipped["lm_head.weight"])


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_have_the_ids_the_config_names() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)
    assert tokenizer.get_vocab_size() == config["vocab_size"]


def test_the_chat_template_renders_what_the_model_was_trained_on() -> None:
    jinja2 = pytest.importorskip("jinja2", reason="needs jinja2 to render the chat template")
    config = json.loads((MODEL_DIR / "tokenizer_config.json").read_text())
    rendered = jinja2.Template(config["chat_template"]).render(
        messages=[{"role": "user", "content": "Tell a story."}],
        bos_token=config["bos_token"],
        add_generation_prompt=True,
    )
    assert rendered == as_chat("Tell a story.")


def test_the_split_is_deterministic_disjoint_and_keeps_translations_together(documents: list[Document]) -> None:
    learned, held_out = split(documents)
    assert len(learned) + len(held_out) == len(documents)
    assert not {d.key for d in learned} & {d.key for d in held_out}
    assert split(load()) == (learned, held_out)
    assert 0.02 < len(held_out) / len(documents) < 0.08


def test_the_attribution_names_every_story_in_full(documents: list[Document]) -> None:
    lines = set(ATTRIBUTION_FILE.read_text(encoding="utf-8").splitlines())
    for d in documents:
        if d.kind == "story":
            fields = (d.title, d.author, d.translator, d.language, d.licence, d.source)
            assert "| " + " | ".join(map(cell, fields)) + " |" in lines


def test_a_story_is_about_what_it_mentions_twice() -> None:
    story = Document("k", "story", "en", "The frog", "A frog met a dog. The frog sang.")
    assert subjects_of(story) == ["a frog"]


def test_rounding_to_the_grid_is_what_export_stores_and_passes_gradients() -> None:
    weight = torch.randn(2, 130, 200, requires_grad=True)
    rounded = round_through(weight)
    assert torch.equal(rounded, dequantize(*quantize(weight)))
    assert torch.equal(dequantize(*quantize(rounded)), rounded), "rounding twice changes nothing"
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(weight.grad if weight.grad is not None else torch.empty(0), torch.ones_like(weight))
    relative = ((rounded - weight).norm() / weight.norm()).item()
    assert relative < 0.04, "e4m3 keeps four significant bits"


def test_the_router_keeps_to_its_groups_and_the_bias_never_weighs() -> None:
    torch.manual_seed(0)
    router, x = Router(TINY), torch.randn(64, TINY.hidden_size)
    router.weight.data.normal_()
    plain = router(x)
    router.e_score_correction_bias[3] = 10.0
    biased = router(x)
    groups = biased.topk_idx // (TINY.n_routed_experts // TINY.n_group)
    assert all(len(set(row.tolist())) <= TINY.topk_group for row in groups)
    assert (biased.topk_idx == 3).any(dim=1).all()
    for routes in (plain, biased):
        assert torch.allclose(routes.topk_weights.sum(1), torch.tensor(TINY.routed_scaling_factor))
    scores = (x @ router.weight.T).sigmoid().gather(1, biased.topk_idx)
    expected = scores / scores.sum(1, keepdim=True) * TINY.routed_scaling_factor
    assert torch.allclose(biased.topk_weights, expected)


def test_no_token_sees_the_future() -> None:
    torch.manual_seed(0)
    network = Network(TINY).eval()
    torch.nn.init.normal_(network.lm_head.weight)
    ids = torch.randint(0, TINY.vocab_size, (1, 20))
    changed = ids.clone()
    changed[0, 12:] = 7
    before, after = network.with_drafts(ids), network.with_drafts(changed)
    assert torch.allclose(before.main[:, :12], after.main[:, :12], atol=1e-5)
    assert torch.allclose(before.mtp[:, :11], after.mtp[:, :11], atol=1e-5)
    assert not torch.allclose(before.mtp[:, 11], after.mtp[:, 11], atol=1e-3), "the draft at t sees token t+1"


def test_the_ngram_baseline_is_a_distribution_and_knows_what_it_read() -> None:
    model = KneserNey([b"the frog sat on the log"] * 3, order=4)
    assert sum(2 ** -(model.bits(b"the fr" + bytes([b])) - model.bits(b"the fr")) for b in range(256)) == pytest.approx(
        1
    )
    assert model.bits(b"the frog") < model.bits(b"gorf eht")


def test_three_steps_lower_the_loss_and_the_export_loads_as_it_was(few: list[Document], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(split(few)[0], TINY.vocab_size)
    settings = training.Settings(out=tmp_path / "model", steps=3, tokens_per_step=512, peak_rate=2e-2)
    network = Network(TINY)
    training.train(settings, network, tokenizer, few)
    network.eval()
    uniform = math.log2(TINY.vocab_size)
    held_out = split(few)[1]
    tokens_per_byte = sum(len(tokenizer.encode(d.plain).ids) for d in held_out) / sum(
        len(d.plain.encode()) for d in held_out
    )
    trained = network_bits(network, tokenizer, held_out)["all"]
    assert trained < uniform * tokens_per_byte * 0.98

    export(network, tokenizer, settings.out)
    loaded, same_tokenizer = load_network(settings.out)
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    # Not exactly: embeddings, norms and router are stored in bf16.
    assert network_bits(loaded, tokenizer, held_out)["all"] == pytest.approx(trained, rel=1e-2)
    export(network, tokenizer, settings.out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"], "replaced whole, nothing left behind"


def test_two_runs_of_one_seed_are_equal(few: list[Document], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(split(few)[0], TINY.vocab_size)
    settings = training.Settings(out=tmp_path, steps=2, tokens_per_step=512)
    states = []
    for _ in range(2):
        torch.manual_seed(settings.seed)
        network = Network(TINY)
        training.train(settings, network, tokenizer, few)
        states.append(network.state_dict())
    first, second = states
    assert all(torch.equal(first[name], second[name]) for name in first)
