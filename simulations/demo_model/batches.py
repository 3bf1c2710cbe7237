"""From documents to batches: an endless, seeded stream of readings, cut into rows of tokens.

Between the text and the loop. One pass reads every training document about as often as its weight says, in a fresh
order and (stories) freshly as plain text or as an answer; readings follow each other without gaps, so a row may begin
in the middle of one and hold the start of the next.
"""

import random
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from shoal.simulations.demo_model.corpus import Document
from shoal.simulations.demo_model.prompts import reading

READINGS = {"en": 1.0, "es": 1.5, "pt": 1.5, "fr": 1.5, "sw": 1.5}
"""Readings of a story per pass, by language: what the model will be asked for is read more often."""
READINGS_OF_OTHER_STORIES = 0.5
READINGS_OF_BOOKS = 0.5
"""Books are 40 % of the bytes and none of the purpose: each piece is read in every second pass."""

POOL_TOKENS = 1 << 17
"""Rows are shuffled among so many tokens (some 200 readings): a batch of neighbouring rows would be one or two stories,
and a few stories neither make a steady gradient nor load the experts evenly."""


def readings_per_pass(document: Document) -> float:
    """How often one pass reads `document`, on average."""
    if document.kind != "story":
        return READINGS_OF_BOOKS
    return READINGS.get(document.language, READINGS_OF_OTHER_STORIES)


class TokenStream:
    """Token ids without end; equal seeds (and equal requests) give equal streams."""

    def __init__(self, train: list[Document], tokenizer: Tokenizer, seed: int) -> None:
        self._train, self._tokenizer = train, tokenizer
        self._rng = random.Random(seed)
        self._ids = self._endless()
        self._held: list[int] = []
        self._pool: list[Tensor] = []
        self.num_tokens_read = 0

    def batch(self, num_rows: int, row_tokens: int) -> Tensor:
        """int64 `[num_rows, row_tokens + 2]`: rows overlap by two tokens, so that every one of the `row_tokens`
        positions has a next token and (for the MTP layer) one after it."""
        if len(self._pool) < num_rows or len(self._pool[0]) != row_tokens + 2:
            self._pool = self._shuffled_rows(row_tokens)
        rows, self._pool = self._pool[:num_rows], self._pool[num_rows:]
        self.num_tokens_read += num_rows * row_tokens
        return torch.stack(rows)

    def _shuffled_rows(self, row_tokens: int) -> list[Tensor]:
        num_rows = POOL_TOKENS // row_tokens
        needed = num_rows * row_tokens + 2
        while len(self._held) < needed:
            self._held.extend(next(self._ids))
        ids, self._held = torch.tensor(self._held[:needed]), self._held[needed - 2 :]
        rows = list(ids.unfold(0, row_tokens + 2, row_tokens))
        self._rng.shuffle(rows)
        return rows

    def _endless(self) -> Iterator[list[int]]:
        while True:
            for document in self._one_pass():
                yield self._tokenizer.encode(reading(document, self._rng)).ids

    def _one_pass(self) -> list[Document]:
        chosen = []
        for document in self._train:
            wanted = readings_per_pass(document)
            times = int(wanted) + (self._rng.random() < wanted % 1)
            chosen += [document] * times
        self._rng.shuffle(chosen)
        return chosen
