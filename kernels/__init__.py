"""Numbers only: formats of weights and the arithmetic of experts on tensors. Knows no layers, no peers, no files."""
