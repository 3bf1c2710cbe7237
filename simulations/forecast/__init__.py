"""What a swarm would give before there is one: a cost model of its tokens, its prompts, its memory and its data.

`shape.py` says what a model costs, `compute.py` what a machine takes for it (calibrated by `shoal bench`), `peers.py`
who holds what and how far away they are, `layer_time.py` how long one layer of one pass takes, `forecast.py` what that
makes for one stream and for many, `layer_pipeline.py` the same for the other way to share a model. Pure functions over
numbers and a seeded generator: no sockets, no clock. docs/SIMULATE.md has the formulas, their validation, and what is
left out.
"""
