"""Other people's expert kernels beside ours: `make bench-peers`. None of them is a dependency of shoal.

`compare.py` drives, `members.py` lists who takes part, `environments.py` makes their environments, `process.py` holds
one process per member. In those processes run `ours.py`, `torch_ops.py`, `ggml.py` and `kt.py`, each a `Member` that
`worker.py` serves; the last two are started by another interpreter, which has neither shoal nor its dependencies, so
they and `worker.py` import nothing but numpy and their own library.
"""
