"""The trunk: everything of the model but its routed experts, in torch, readable in an hour.

Read in this order: `config` (what the checkpoint says), `model` (embed -> blocks -> norm -> head), `attention` with
`rope` and `kv_cache`, `router`, `moe` (the seam to the swarm), `mtp` (drafts), `checkpoint` (where weights come from),
`local_experts` (the whole model in one process). Knows no peers, no sockets and no text.
"""
