"""A byte-level tokenizer, trained in a millisecond, with DeepSeek's markers."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, USER = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>"
CORPUS = [
    "Once upon a time there was a shoal of fish.",
    "Es war einmal ein Fisch, größer als die anderen.",
    "漢字 👩‍👧",
]
CONFIG = {
    "add_bos_token": False,
    "bos_token": {"__type": "AddedToken", "content": BOS},
    "eos_token": EOS,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "chat_template": "{{ bos_token }}{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}",
}


def train() -> Tokenizer:
    """A byte-level BPE with DeepSeek's markers, of which, as there, only some are marked special."""
    vocabulary = Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocabulary.train_from_iterator(CORPUS * 3, trainer)
    vocabulary.add_tokens([AddedToken(USER, special=False), AddedToken("<think>", special=False)])
    return vocabulary
