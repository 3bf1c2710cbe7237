"""The demonstration model: a small DeepSeek-V3-shaped MoE, the program that trains it, and its card.

Read in this order: `shape` (what is built), `corpus` and `prompts` (what it reads), `bpe` (how text becomes tokens),
`network` (the model), `optimizer`, `train` (the visible loop), `blocks` and `export` (the official fp8 layout),
`ngram` and `evaluate` (how good it is). Nothing here knows of peers, wires or swarms: the result is a checkpoint
directory like any other.
"""

from pathlib import Path

MODEL_DIRECTORY = Path(__file__).parent / "model"
"""The checkpoint that comes with shoal."""
