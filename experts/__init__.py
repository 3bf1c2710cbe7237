"""Weights at rest: what a model's experts look like, how they are read and verified, and the seam to the kernels.

Knows checkpoints, manifests and families. Knows no network and no attention: the trunk belongs to `client/trunk`.
"""
