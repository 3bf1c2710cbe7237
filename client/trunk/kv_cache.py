"""The compressed KV cache of one sequence.  (Signatures; the bodies follow.)"""


class LatentCache:
    """`kv_lora_rank + qk_rope_head_dim` values per token and layer."""

    @property
    def num_tokens(self) -> int:
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on (rejected drafts)."""
        raise NotImplementedError
