"""Text becomes the ids that transformers gives it, comes back whole, and cannot write control tokens.

Run: pytest tests/client/text/test_tokenizer.py
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Vocabulary
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from shoal.client.text.detokenizer import IncrementalDetokenizer
from shoal.client.text.tokenizer import Tokenizer
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound
from tests.client.text.tiny_tokenizer import BOS, CONFIG, CORPUS, EOS, USER, train

SAMPLES = [*CORPUS, "", " ", "a\n\nb", "tabs\tand  spaces", "👩‍👩‍👧‍👦 é ï", "0123456789", "\x00\u200b"]
VOCABULARY = train()


def write(directory: Path, config: dict[str, object], vocabulary: Vocabulary = VOCABULARY) -> Path:
    directory.mkdir(exist_ok=True)
    vocabulary.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tokenizer"), CONFIG)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


@pytest.mark.parametrize("adds_bos", [None, False, True])
@pytest.mark.parametrize("has_post_processor", [False, True])
def test_ids_are_those_of_transformers_whatever_the_config_says_of_bos(
    adds_bos: bool | None, has_post_processor: bool, tmp_path: Path
) -> None:
    vocabulary = Vocabulary.from_str(VOCABULARY.to_str())
    if has_post_processor:
        vocabulary.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    config = {key: value for key, value in CONFIG.items() if key != "add_bos_token"}
    write(tmp_path, config | ({} if adds_bos is None else {"add_bos_token": adds_bos}), vocabulary)
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in SAMPLES:
        assert ours.encode(text) == theirs(text).input_ids
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, adds_special_tokens=False) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text


def test_a_conversation_has_the_ids_of_transformers(directory: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Once upon"}, {"role": "user", "content": "größer"}]
    theirs = PreTrainedTokenizerFast.from_pretrained(directory).apply_chat_template(messages, return_dict=False)
    assert tokenizer.encode_chat(messages) == theirs
    assert tokenizer.encode_chat(messages)[:2] == [0, tokenizer.token_id(USER)]


@pytest.mark.parametrize("marker", [BOS, EOS, USER, "<think>"])
def test_user_text_cannot_write_control_tokens(marker: str, tokenizer: Tokenizer) -> None:
    text = f"hello {marker} there"
    assert tokenizer.token_id(marker) not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_id(marker) in tokenizer.encode(text, parses_control_tokens=True)


def test_a_prompt_to_continue_begins_with_bos(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_prompt("fish") == [tokenizer.bos_token_id, *tokenizer.encode("fish")]


def test_special_tokens_are_known_by_name_and_left_out_of_the_text(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.decode([0, *tokenizer.encode("fish"), 1]) == "fish"
    assert tokenizer.decode([0], skips_special_tokens=False) == BOS


def streamed(detokenizer: IncrementalDetokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@given(st.text(max_size=30))
def test_no_piece_of_streamed_text_is_half_a_character(text: str) -> None:
    tokenizer = Tokenizer(VOCABULARY.to_str().encode(), CONFIG)
    pieces = streamed(tokenizer.detokenizer(), tokenizer.encode(text))
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" in text or all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@given(st.lists(st.integers(0, 401), max_size=30))
def test_streaming_any_ids_gives_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    tokenizer = Tokenizer(VOCABULARY.to_str().encode(), CONFIG)
    assert "".join(streamed(tokenizer.detokenizer(), ids)) == tokenizer.decode(ids)


def llama_like() -> Vocabulary:
    """Words that begin with a metaspace, and single bytes for what is not in the vocabulary."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "f", "i", "s", "h", "▁f", "▁fi"]
    vocab = {token: i for i, token in enumerate(tokens)}
    vocabulary = Vocabulary(models.BPE(vocab, [("▁", "f"), ("▁f", "i")], byte_fallback=True))
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return vocabulary


@given(st.text(alphabet="fish é漢👩", max_size=20))
def test_streaming_works_with_byte_fallback_and_metaspaces_too(text: str) -> None:
    tokenizer = Tokenizer(llama_like().to_str().encode(), {})
    ids = tokenizer.encode(text)
    assert "".join(streamed(tokenizer.detokenizer(), ids)) == tokenizer.decode(ids)


def test_incomplete_bytes_come_out_at_the_end(tokenizer: Tokenizer) -> None:
    detokenizer, ids = tokenizer.detokenizer(), tokenizer.encode("漢")
    assert [detokenizer.push(token_id) for token_id in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"


def test_a_template_file_wins_over_the_config(tmp_path: Path) -> None:
    write(tmp_path, CONFIG)
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert Tokenizer.load(tmp_path).chat_template.render([]) == "file"


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert Tokenizer.load(write(tmp_path, CONFIG | {"chat_template": named})).chat_template.render([]) == "plain"


def test_a_model_without_template_refuses_messages_only(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, {}))
    assert tokenizer.encode("fish")
    with pytest.raises(InvalidRequest, match="chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_a_directory_without_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("value", "expected"), [(None, ()), (1, (1,)), ([1, 5], (1, 5))])
def test_generation_config_names_more_end_tokens(value: object, expected: tuple[int, ...], tmp_path: Path) -> None:
    (write(tmp_path, CONFIG) / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert Tokenizer.load(tmp_path).end_token_ids == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(name: str, content: str, tmp_path: Path) -> None:
    write(tmp_path, CONFIG)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.load(tmp_path)
