"""The wire: what peers say to each other, byte by byte (PROTOCOL.md is this package in prose).

Everything outside `net/` is sans-IO: no sockets, no event loop, no clock, no randomness; those come in as arguments.
It knows no weights and no models, only layer and expert numbers. `torch` appears in `tensors.py` and nowhere else.
"""
