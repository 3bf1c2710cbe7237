"""The tokenizer: a byte-level BPE learned from the training text, in `tokenizer.json` form.

Byte-level: every text in every script has an encoding, and decoding gives it back byte for byte. It never sees
held-out text. Special tokens are DeepSeek's (`prompts.SPECIAL_TOKENS`).
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shoal.simulations.demo_model.corpus import Document
from shoal.simulations.demo_model.prompts import BOS, EOS, PAD, SPECIAL_TOKENS

STORY_LANGUAGES_TWICE = frozenset({"en", "es", "pt", "fr", "sw"})
"""Stories of these count double when merges are learned: they are what the model is asked for."""


def train_tokenizer(train: list[Document], vocab_size: int) -> Tokenizer:
    """Learn `vocab_size` tokens (special ones and 256 bytes included); deterministic for equal input."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one, as DeepSeek does for short numbers; then GPT-2's word split on bytes.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.plain for d in train for _ in range(_weight(d))), trainer)
    return tokenizer


def tokenizer_config(chat_template: str, context_tokens: int) -> dict[str, object]:
    """`tokenizer_config.json`, as DeepSeek's: nothing is added on encoding; the chat template writes the BOS."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": context_tokens,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a token that must exist; raises `KeyError` when it does not."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def _weight(document: Document) -> int:
    return 2 if document.kind == "story" and document.language in STORY_LANGUAGES_TWICE else 1
