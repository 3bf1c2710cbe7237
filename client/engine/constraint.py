"""The seam for grammars: which tokens may come next (a JSON schema, a tool call, a choice among strings).

Stands on the sampling path, before every other filter. Whoever implements it knows a grammar and a tokenizer; this
module and the sampler know token ids only.
"""

from typing import Protocol

from torch import Tensor


class TokenConstraint(Protocol):
    """One answer's grammar and its state. Called on the trunk's worker: `allowed`, then `accept`, for every token.

    Only one call runs at a time, and none after an end-of-sequence token; where drafts are verified, a few may come
    after a stop string has ended the answer. Calls must be quick: every stream that shares the trunk waits for them. An
    exception of theirs ends the answer and reaches its reader as it is.
    """

    def allowed(self) -> Tensor | None:
        """bool[V], true where a token may come next, V the width of the model's logits; None: any token.

        Where the grammar is complete, the end-of-sequence tokens must be allowed, or the answer cannot end. Read before
        the next call, so that one buffer may serve all. Nothing allowed is `NoTokenAllowed`.
        """

    def accept(self, token_id: int) -> None:
        """The token that was chosen; an end-of-sequence token too."""
