"""Speculation: guess the next tokens cheaply, have one pass through the swarm verify all guesses.

Read in this order: `drafter` (the seam), `ngram` and `mtp_drafter` (who guesses), `first_of` (both), `width` (how many
guesses pay: a pure function), `pass_times` and `acceptance` (what it is told), `speculator` (all of it, for an engine).
A guess decides nothing: every token of an answer is the sampler's own choice from the trunk's own logits, so that an
answer is the same with and without speculation, token by token and seed by seed (docs/adr/0025-speculation.md).
"""
