"""The bytes of one token, for those who show tokens one by one (log-probabilities).

Beside the detokenizer, which gives text: a token may be half a character.
"""

from tokenizers import Tokenizer as Vocabulary
from tokenizers.decoders import ByteLevel


def _alphabet() -> dict[str, int]:
    """The letters of byte-level BPE and the bytes they stand for (openai/gpt-2, encoder.py, `bytes_to_unicode`):
    printable Latin-1 stands for itself, every other byte for the next letter from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


ALPHABET = _alphabet()


class TokenBytes:
    """The bytes that each token of a vocabulary stands for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._added = {token_id: token.content for token_id, token in vocabulary.get_added_tokens_decoder().items()}
        self._is_byte_level = isinstance(vocabulary.decoder, ByteLevel)

    def __call__(self, token_id: int) -> bytes:
        """Bytes of one token; empty if there is none of this id. Exact for byte-level vocabularies, DeepSeek's and ours
        among them; for others the text that decoding the token alone gives."""
        content = self._added.get(token_id)
        if content is not None:
            return content.encode()
        if not self._is_byte_level:
            return self._vocabulary.decode([token_id], skip_special_tokens=False).encode()
        return bytes(ALPHABET[letter] for letter in self._vocabulary.id_to_token(token_id) or "")
