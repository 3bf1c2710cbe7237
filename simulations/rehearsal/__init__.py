"""The real DeepSeek-V3.1 without its weights: a checkpoint of 641 GiB of holes, and all that leads from it to nodes.

    layout.py    its tensors: names, dtypes, shapes, order, and which of the 163 files each is in
    sparse.py    writes such a checkpoint: headers and index as published, holes for data, a little filler
    hashing.py   a manifest of it, of which the filled layers are read and hashed
    fetching.py  `shoal models pull` against the local hub, and what it cost
    assigning.py two hundred nodes choose, come and go
    report.py    what came out, as a table

`make rehearsal` runs it (`__main__.py`) and writes docs/REHEARSAL.md. ADR 0031.
"""
