"""The baseline: an interpolated Kneser-Ney model over bytes, trained on the same text as the network.

What a model without a network reaches. It sees exactly the training split, every document once; a document's bytes
are predicted from the bytes before them in the same document. Formulas: Chen & Goodman 1999 (interpolated, one
discount per order, `D = n1 / (n1 + 2 n2)`), with continuation counts below the highest order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BYTE_BITS = 8
MAX_ORDER = 8
"""An n-gram of bytes must fit a 64-bit key."""

Keys = NDArray[np.uint64]
Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Level:
    """One order: sorted n-gram keys with their discounted probability, sorted context keys with their back-off mass."""

    grams: Keys
    probabilities: Reals
    contexts: Keys
    backoffs: Reals


def windows(text: bytes, order: int) -> Keys:
    """For every byte of `text` the key of the `order` bytes that end with it (zero bytes stand before the start)."""
    padded = np.frombuffer(bytes(order - 1) + text, dtype=np.uint8).astype(np.uint64)
    keys = np.zeros(len(text), dtype=np.uint64)
    for offset in range(order):
        keys = (keys << np.uint64(BYTE_BITS)) | padded[offset : offset + len(text)]
    return keys


class KneserNey:
    """`order`-gram byte model: trained on construction, then asked for bits."""

    def __init__(self, documents: list[bytes], order: int) -> None:
        if not 2 <= order <= MAX_ORDER:
            raise ValueError(f"order: got {order}, expected 2..{MAX_ORDER}")
        self.order = order
        keys = np.concatenate([windows(text, order) for text in documents])
        grams, counts = np.unique(keys, return_counts=True)
        self._levels = [_level(grams, counts.astype(np.float64))]
        for length in range(order - 1, 0, -1):
            # Continuation count: in how many different contexts the shorter n-gram was seen.
            grams, counts = np.unique(grams & _mask(length), return_counts=True)
            self._levels.insert(0, _level(grams, counts.astype(np.float64)))

    def bits(self, text: bytes) -> float:
        """Sum over `text` of `-log2 p(byte | bytes before it)`."""
        keys = windows(text, self.order)
        probability = np.full(len(text), 1.0 / 256)
        for length, level in enumerate(self._levels, start=1):
            gram = keys & _mask(length)
            backoff = _lookup(level.contexts, level.backoffs, gram >> np.uint64(BYTE_BITS), missing=1.0)
            probability = _lookup(level.grams, level.probabilities, gram, missing=0.0) + backoff * probability
        return float(-np.log2(probability).sum())


def _mask(length: int) -> np.uint64:
    return np.uint64((1 << (BYTE_BITS * length)) - 1)


def _level(grams: Keys, counts: Reals) -> Level:
    discount = _discount(counts)
    contexts, which, kinds = np.unique(grams >> np.uint64(BYTE_BITS), return_inverse=True, return_counts=True)
    totals = np.bincount(which, weights=counts)
    return Level(grams, (counts - discount) / totals[which], contexts, discount * kinds / totals)


def _discount(counts: Reals) -> float:
    once, twice = float((counts == 1).sum()), float((counts == 2).sum())
    # The lowest order of a small text may have no rare byte at all: any small discount serves.
    return once / (once + 2 * twice) if once else 0.5


def _lookup(keys: Keys, values: Reals, wanted: Keys, missing: float) -> Reals:
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], missing)
