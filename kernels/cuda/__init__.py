"""Experts on a CUDA device, in Triton: weights stay as stored, one pair of launches per call however many experts.

`layout.py` says which formats there are, `tiles.py` cuts ragged groups into tiles on the host, `programs.py` is what
runs on the device, `grouped_swiglu.py` launches it.

Triton is imported when the first call is made, not before: a machine without it can import everything else here. The
programs are tested on the CPU by Triton's interpreter; no figure of their speed exists yet (docs/LOG.md).
"""
