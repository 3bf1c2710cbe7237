// A weight matrix in the packed layout, made once at load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "layout.h"

namespace shoal {

struct FreeAligned {
  void operator()(uint8_t* memory) const;
};
using AlignedBuffer = std::unique_ptr<uint8_t[], FreeAligned>;

// Memory on a cache line's boundary, or a huge page's for large sizes. Not zeroed.
AlignedBuffer allocate_aligned(size_t size_bytes);

// Bytes of a weight as stored in a checkpoint: row-major, no gaps. May be misaligned and read-only.
struct StoredWeight {
  Format format;
  int64_t rows, columns;
  const uint8_t* data;   // f32, bf16, e4m3, int8, or two columns a byte (the low nibble first, ceil(columns / 2) bytes)
  const uint8_t* scale;  // f32[ceil(rows / 128), ceil(columns / 128)], bf16|e8m0[rows, ceil(columns / group)], or null
};

// Bytes of a matrix as `Matrix` keeps them, in memory of somebody else.
struct PackedBytes {
  const uint8_t* codes;
  size_t code_bytes;
  const uint8_t* scales;  // or null
  size_t scale_bytes;
};

class Matrix {
 public:
  // Throws std::invalid_argument: a value that is not finite, or a code that the format does not have.
  explicit Matrix(const StoredWeight& stored);

  // One that was packed before, by the same packing version; nothing is copied, `owner` keeps the memory alive. The bytes
  // are believed. Throws std::invalid_argument: not the sizes of this shape, or not on a cache line's boundary.
  Matrix(Format format, int64_t rows, int64_t columns, const PackedBytes& packed, std::shared_ptr<const void> owner);

  Format format() const { return format_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t padded_columns() const { return padded_columns_; }
  int64_t num_panels() const { return padded_rows_ / kPanelRows; }
  size_t size_bytes() const { return code_bytes_ + scale_bytes_; }

  PackedBytes bytes() const { return {codes_at_, code_bytes_, scales_at_, scale_bytes_}; }
  const uint8_t* panel_codes(int64_t panel) const;
  const uint8_t* panel_scales(int64_t panel) const;

  // What a matrix of this shape will take.
  static size_t packed_bytes(Format format, int64_t rows, int64_t columns);

 private:
  Matrix(Format format, int64_t rows, int64_t columns);
  void pack_codes(const StoredWeight& stored);
  void pack_scales(const StoredWeight& stored);

  Format format_;
  int64_t rows_, columns_, padded_rows_, padded_columns_;
  size_t code_bytes_, scale_bytes_;
  AlignedBuffer codes_, scales_;  // empty if the memory is an owner's
  std::shared_ptr<const void> owner_;
  const uint8_t* codes_at_ = nullptr;
  const uint8_t* scales_at_ = nullptr;
};

}  // namespace shoal
