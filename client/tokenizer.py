"""Text to token ids and back.  (Signatures; the bodies follow.)"""

from pathlib import Path


class Tokenizer:
    """A model's tokenizer, from `tokenizer.json` and `tokenizer_config.json`."""

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError
