"""The gateway's face: an OpenAI-compatible HTTP API over one model in a swarm.

A request's journey: `guard.py` (host, origin, token) → `body.py` (bytes, bounded) → `chat_schema.py` or
`completion_schema.py` (fields, ranges) → `line.py` (a place, or 429) → `choices.py` (streams of tokens) → `chat.py` or
`completions.py` (OpenAI's words) → `event_stream.py` or one JSON object. `serve.py` listens.
Errors are OpenAI's envelope (`errors.py`). Knows no peers; a model is the seam `model.py`.
"""
