"""Token ids to text, one token at a time.

Stands between the sampler and the stop strings. A character whose bytes are spread over several tokens appears when
the last of them has come. Knows one tokenizer's vocabulary; knows no model.
"""

from tokenizers import Tokenizer as Vocabulary
from tokenizers.decoders import DecodeStream


class IncrementalDetokenizer:
    """The text of one answer, without special tokens. All pieces together are what decoding all ids at once gives."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that this token completes; empty while bytes of a character are missing."""
        piece = self._stream.step(self._vocabulary, token_id)
        self._held.append(token_id)
        if piece is None:
            return ""
        self._held.clear()
        return piece

    def flush(self) -> str:
        """What was held back, when no more tokens come: incomplete characters as U+FFFD."""
        held, self._held = self._held, []
        return self._vocabulary.decode(held, skip_special_tokens=True)
