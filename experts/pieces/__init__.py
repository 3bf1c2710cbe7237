"""A model in verified pieces: an expert, or a tensor of the trunk, each named by its hash.

    pieces.py       what a model's pieces are, by its manifest
    encoding.py     a piece's bytes: the canonical encoding that its digest is of
    disk.py         the seam to the file system
    store.py        pieces on disk: safe against power loss, never served unverified
    pins.py         what a program needs and eviction must leave
    sources.py      the seam to where pieces come from
    fetching.py     several sources at once into a store
    ranges.py       a published checkpoint, read by byte ranges
    places.py       where its tensors are: by a layout, by what was kept, by index and headers
    layout.py       all places of a checkpoint in 10 kB
    kept.py         what a source said of itself, kept beside the model
    shelf.py        which models this machine knows
    model.py        a model opened from the store

Knows no network: what reads ranges over HTTP is in `protocol/net`. ADR 0024.
"""
