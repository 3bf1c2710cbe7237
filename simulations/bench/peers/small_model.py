"""The small DeepSeek-V3 that whole systems are compared on: 102.5 million parameters, the published shape in small."""

import random

SEED = 0
SHAPE = {
    "vocab_size": 4096, "hidden_size": 512, "num_hidden_layers": 8, "first_k_dense_replace": 1,
    "intermediate_size": 1024, "moe_intermediate_size": 256, "n_routed_experts": 32, "n_shared_experts": 1,
    "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "num_attention_heads": 8, "num_key_value_heads": 8, "q_lora_rank": 192, "kv_lora_rank": 128,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "rope_theta": 10000.0,
    "max_position_embeddings": 4096, "initializer_range": 0.02, "tie_word_embeddings": False,
}  # fmt: skip
"""Of transformers' `DeepseekV3Config`; seven layers have experts."""

PROMPT_IDS = random.Random(SEED).choices(range(4096), k=16)


def prompt_of(stream: int) -> list[int]:
    """The prompt of one of several streams: the same ids, turned; the first has them as they are."""
    turn = stream % len(PROMPT_IDS)
    return PROMPT_IDS[turn:] + PROMPT_IDS[:turn]
