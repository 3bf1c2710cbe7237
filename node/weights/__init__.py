"""Where a node's weights come from and where they stay.

Read in this order: `loading` (a checkpoint's experts into memory), `packing` (as the kernels want them, mapped at the
next start), `model_sources`, `pulling` and `filling` (what is missing, from peers, hub, mirror or folder), `space` (the
owner's limit on disk).
"""
