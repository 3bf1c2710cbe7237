"""Two 4-bit codes in a byte: the layout that `int4` and `mxfp4` share.

Byte j of a row holds column 2j in its low half and column 2j + 1 in its high half, which is the order of gpt-oss's
MXFP4 blocks and, read as bytes, of compressed-tensors' int32 words. Knows no formats.
"""

import torch


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """codes: u8[out, in], each 0..15, an even number of columns. Returns u8[out, in / 2].

    Raises:
        ValueError: an odd number of columns.
    """
    if codes.shape[1] % 2:
        raise ValueError(f"{codes.shape[1]} columns: 4-bit formats need an even number")
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(data: torch.Tensor) -> torch.Tensor:
    """data: u8[out, in / 2]. Returns the codes, u8[out, in]."""
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(1)
