"""Speculation: guess the next tokens cheaply, have one pass through the swarm verify all guesses.

Read in this order: `drafter` (the seam), `ngram` and `mtp_drafter` (who guesses), `first_of` (both), `width` (how many
guesses pay) and `depth` (how many passes should follow one another), both pure functions, `pass_times`, `acceptance`
and `trials` (what they are told), `speculator` (all of it, for an engine).
A guess decides nothing: every token of an answer is the sampler's own choice from the trunk's own logits, so that an
answer is the same with and without speculation, token by token and seed by seed (docs/adr/0025-speculation.md).
"""
