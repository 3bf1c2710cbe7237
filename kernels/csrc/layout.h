// How weights lie in memory once packed: one layout for every instruction set, so that a packed expert runs on any path.
//
// A matrix W[rows, cols] is cut into panels of 64 rows; a panel is a run of chunks along `cols`; a chunk is 64 bytes for
// each of the panel's 4 tiles of 16 rows. So a panel is one sequential stream, 256 bytes a step, and each 64 bytes
// decode into whole vectors: 16 rows x 1 column (f32), 2 (bf16), 4 (bytes) or 8 (nibbles).
// Rows are padded to 64 and columns to 128 with zeros, which add nothing to any sum.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shoal {

// The numbers are those of the wire's weight formats; kernels/cpu.py has the same list and a test compares them.
enum class Format : int {
  kFp8Block = 1,  // e4m3, one f32 scale per 128 x 128
  kBf16 = 2,
  kF32 = 3,
  kInt8G128 = 4,  // -127..127, one bf16 scale per row and 128 columns
  kInt4G32 = 5,   // -8..7, one bf16 scale of 5 significant bits per row and 32 columns
  kInt4G128 = 6,
  kMxfp4 = 7,     // e2m1, one E8M0 scale per row and 32 columns
};
constexpr int kNumFormats = 8;  // as array size; 0 is no format

// Goes up with every change of where a packed byte lies: caches of packed weights are found by it.
constexpr int kPackingVersion = 1;

constexpr int kTileRows = 16;
constexpr int kTilesPerPanel = 4;
constexpr int kPanelRows = kTileRows * kTilesPerPanel;
constexpr int kChunkBytes = 64;  // of one tile: a cache line
constexpr int kColumnAlign = 128;
constexpr int kBlock = 128;  // of fp8_block, both ways

enum class Codes { kF32, kBf16, kByte, kNibble };
enum class Scales { kNone, kF32Block, kBf16Row, kE8m0Row };

constexpr Codes codes_of(Format format) {
  switch (format) {
    case Format::kF32: return Codes::kF32;
    case Format::kBf16: return Codes::kBf16;
    case Format::kFp8Block:
    case Format::kInt8G128: return Codes::kByte;
    default: return Codes::kNibble;
  }
}

constexpr Scales scales_of(Format format) {
  switch (format) {
    case Format::kF32:
    case Format::kBf16: return Scales::kNone;
    case Format::kFp8Block: return Scales::kF32Block;
    case Format::kMxfp4: return Scales::kE8m0Row;
    default: return Scales::kBf16Row;
  }
}

// Columns that share a scale. Formats without scales also sum in groups: partial sums of 128 keep fp32 errors small.
constexpr int group_columns(Format format) {
  return format == Format::kInt4G32 || format == Format::kMxfp4 ? 32 : 128;
}

constexpr int columns_per_chunk(Codes codes) {
  switch (codes) {
    case Codes::kF32: return 1;
    case Codes::kBf16: return 2;
    case Codes::kByte: return 4;
    default: return 8;
  }
}

constexpr size_t scale_bytes(Scales scales) {
  switch (scales) {
    case Scales::kNone: return 0;
    case Scales::kF32Block: return 4;
    case Scales::kBf16Row: return 2;
    default: return 1;
  }
}

// Where column `k` (within its chunk) of row `r` (within its tile) lies in the chunk's 64 bytes, for bytes and nibbles.
// 16 bytes hold 4 rows: their columns 0, 1, then their columns 2, 3. Interleaving two such vectors of bytes (the high
// and the low byte of bf16 values) with punpcklbw / punpckhbw gives pairs of columns for 16 rows, as vdpbf16ps wants.
// Nibbles: the low ones are columns 0..3, the high ones 4..7.
constexpr int byte_in_chunk(int r, int k) { return (r / 4) * 16 + ((k % 4) / 2) * 8 + (r % 4) * 2 + k % 2; }

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace shoal
