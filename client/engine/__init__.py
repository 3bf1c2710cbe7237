"""Many streams, one trunk: whose tokens go into a pass, the pass, and the token each stream gets of it.

Read in this order: `generate` (the loop), `scheduler` (whose turn, a pure policy), `sequence` (one stream's state),
`passes` with `wave_groups`, `ping_pong` (which streams go together, in how many groups) and `blame` (a forward pass and
whose error ends it), `sampler` with `constraint` and `logprobs`,
`generation` (what an answer is made of). `engine_settings` and `engine_load`: how much at a time, and how much is.
"""
