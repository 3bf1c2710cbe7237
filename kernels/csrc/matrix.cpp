#include "matrix.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace shoal {
namespace {

constexpr size_t kLineBytes = 64;
constexpr size_t kHugePageBytes = size_t{2} << 20;  // fewer TLB misses: a V3 matrix is 7 huge pages, or 3,584 small ones

size_t code_size(Format format, int64_t rows, int64_t columns) {
  return static_cast<size_t>(rows * (columns / columns_per_chunk(codes_of(format))) * (kChunkBytes / kTileRows));
}

size_t scale_size(Format format, int64_t rows, int64_t columns) {
  const Scales scales = scales_of(format);
  const int64_t groups = columns / group_columns(format);
  const int64_t lines = scales == Scales::kF32Block ? round_up(rows, kBlock) / kBlock : rows;
  return static_cast<size_t>(lines * groups) * scale_bytes(scales);
}

float float_at(const uint8_t* data, int64_t index) {
  float value;
  std::memcpy(&value, data + 4 * index, 4);
  return value;
}

float bf16_at(const uint8_t* data, int64_t index) {
  uint16_t half;
  std::memcpy(&half, data + 2 * index, 2);
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float e8m0_of(uint8_t byte) { return byte == 255 ? NAN : std::ldexp(1.0f, int{byte} - 127); }

float e4m3_magnitude(int magnitude) {
  return magnitude < 8 ? std::ldexp(float(magnitude), -9) : std::ldexp(float(8 + magnitude % 8), magnitude / 8 - 10);
}

[[noreturn]] void refuse(const char* reason) { throw std::invalid_argument(reason); }

int nibble_at(const StoredWeight& stored, int64_t row, int64_t column) {
  const uint8_t byte = stored.data[row * ((stored.columns + 1) / 2) + column / 2];
  return column % 2 ? byte >> 4 : byte & 15;
}

// The largest magnitude among the values that a scale multiplies, so that the product can be checked once per group.
struct GroupMaximum {
  const StoredWeight& stored;

  float operator()(int64_t row, int64_t begin, int64_t end) const {
    float maximum = 0;
    for (int64_t column = begin; column < end; ++column) maximum = std::fmax(maximum, magnitude(row, column));
    return maximum;
  }

  float magnitude(int64_t row, int64_t column) const {
    switch (stored.format) {
      case Format::kFp8Block: return e4m3_magnitude(stored.data[row * stored.columns + column] & 0x7f);
      case Format::kInt8G128: return std::fabs(float(static_cast<int8_t>(stored.data[row * stored.columns + column])));
      case Format::kMxfp4: {
        constexpr float kE2m1[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
        return kE2m1[nibble_at(stored, row, column) & 7];
      }
      default: {
        const int code = nibble_at(stored, row, column);
        return float(code & 8 ? 16 - code : code);
      }
    }
  }
};

void check_product(float scale, float maximum) {
  if (!std::isfinite(scale)) refuse("a scale that is not finite");
  if (!std::isfinite(scale * maximum)) refuse("a value that is not finite");
}

void check_codes(const StoredWeight& stored) {
  const int64_t size = stored.rows * stored.columns;
  bool is_bad = false;
  switch (stored.format) {
    case Format::kF32:
      for (int64_t i = 0; i < size; ++i) is_bad |= !std::isfinite(float_at(stored.data, i));
      if (is_bad) refuse("a value that is not finite");
      return;
    case Format::kBf16:
      for (int64_t i = 0; i < size; ++i) is_bad |= (stored.data[2 * i + 1] & 0x7f) == 0x7f && stored.data[2 * i] >> 7;
      if (is_bad) refuse("a value that is not finite");
      return;
    case Format::kFp8Block:
      for (int64_t i = 0; i < size; ++i) is_bad |= (stored.data[i] & 0x7f) == 0x7f;
      if (is_bad) refuse("fp8 NaN (byte 0x7f or 0xff)");
      return;
    case Format::kInt8G128:
      for (int64_t i = 0; i < size; ++i) is_bad |= stored.data[i] == 0x80;
      if (is_bad) refuse("int8 code -128; the format has -127..127");
      return;
    default: return;  // every nibble means something
  }
}

}  // namespace

void FreeAligned::operator()(uint8_t* memory) const { std::free(memory); }

AlignedBuffer allocate_aligned(size_t size_bytes) {
  const size_t alignment = size_bytes >= kHugePageBytes ? kHugePageBytes : kLineBytes;
  const size_t rounded = static_cast<size_t>(round_up(static_cast<int64_t>(size_bytes), static_cast<int64_t>(kLineBytes)));
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, rounded ? rounded : kLineBytes) != 0) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kHugePageBytes) madvise(memory, rounded / kHugePageBytes * kHugePageBytes, MADV_HUGEPAGE);
#endif
  return AlignedBuffer(static_cast<uint8_t*>(memory));
}

size_t Matrix::packed_bytes(Format format, int64_t rows, int64_t columns) {
  const int64_t padded_rows = round_up(rows, kPanelRows), padded_columns = round_up(columns, kColumnAlign);
  return code_size(format, padded_rows, padded_columns) + scale_size(format, padded_rows, padded_columns);
}

Matrix::Matrix(const StoredWeight& stored)
    : format_(stored.format),
      rows_(stored.rows),
      columns_(stored.columns),
      padded_rows_(round_up(stored.rows, kPanelRows)),
      padded_columns_(round_up(stored.columns, kColumnAlign)),
      code_bytes_(code_size(format_, padded_rows_, padded_columns_)),
      scale_bytes_(scale_size(format_, padded_rows_, padded_columns_)) {
  check_codes(stored);
  codes_ = allocate_aligned(code_bytes_);
  pack_codes(stored);
  if (scales_of(format_) == Scales::kNone) return;
  scales_ = allocate_aligned(scale_bytes_);
  pack_scales(stored);
}

const uint8_t* Matrix::panel_codes(int64_t panel) const {
  return codes_.get() + panel * static_cast<int64_t>(code_bytes_) / num_panels();
}

const uint8_t* Matrix::panel_scales(int64_t panel) const {
  const int64_t groups = padded_columns_ / group_columns(format_);
  switch (scales_of(format_)) {
    case Scales::kNone: return nullptr;
    case Scales::kF32Block: return scales_.get() + panel * kPanelRows / kBlock * groups * 4;
    default: return scales_.get() + panel * groups * kPanelRows * static_cast<int64_t>(scale_bytes(scales_of(format_)));
  }
}

void Matrix::pack_codes(const StoredWeight& stored) {
  const Codes codes = codes_of(format_);
  const int64_t per_chunk = columns_per_chunk(codes);
  const bool is_padded = padded_rows_ != rows_ || padded_columns_ != columns_;
  if (is_padded || codes == Codes::kNibble) std::memset(codes_.get(), 0, code_bytes_);
  for (int64_t row = 0; row < rows_; ++row) {
    const int tile = int(row % kPanelRows) / kTileRows, r = int(row % kTileRows);
    uint8_t* const panel = codes_.get() + row / kPanelRows * (padded_columns_ / per_chunk) * kTilesPerPanel * kChunkBytes;
    for (int64_t column = 0; column < columns_; ++column) {
      uint8_t* const chunk = panel + (column / per_chunk * kTilesPerPanel + tile) * kChunkBytes;
      const int k = int(column % per_chunk);
      const int64_t index = row * columns_ + column;
      switch (codes) {
        case Codes::kF32: std::memcpy(chunk + 4 * r, stored.data + 4 * index, 4); break;
        case Codes::kBf16: std::memcpy(chunk + 4 * r + 2 * k, stored.data + 2 * index, 2); break;
        case Codes::kByte: chunk[byte_in_chunk(r, k)] = stored.data[index]; break;
        case Codes::kNibble:
          chunk[byte_in_chunk(r, k)] |= static_cast<uint8_t>(nibble_at(stored, row, column) << (k / 4 * 4));
      }
    }
  }
}

void Matrix::pack_scales(const StoredWeight& stored) {
  std::memset(scales_.get(), 0, scale_bytes_);  // padded codes are zero: any finite scale does
  const int64_t group = group_columns(format_), padded_groups = padded_columns_ / group;
  const int64_t groups = (columns_ + group - 1) / group;
  const GroupMaximum maximum{stored};
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t end = (g + 1) * group < columns_ ? (g + 1) * group : columns_;
      const float largest = maximum(row, g * group, end);
      const int64_t packed = (row / kPanelRows * padded_groups + g) * kPanelRows + row % kPanelRows;
      switch (scales_of(format_)) {
        case Scales::kF32Block: {
          const int64_t index = row / kBlock * groups + g;
          check_product(float_at(stored.scale, index), largest);
          std::memcpy(scales_.get() + 4 * (row / kBlock * padded_groups + g), stored.scale + 4 * index, 4);
          break;
        }
        case Scales::kBf16Row:
          check_product(bf16_at(stored.scale, row * groups + g), largest);
          std::memcpy(scales_.get() + 2 * packed, stored.scale + 2 * (row * groups + g), 2);
          break;
        default:
          check_product(e8m0_of(stored.scale[row * groups + g]), largest);
          scales_[static_cast<size_t>(packed)] = stored.scale[row * groups + g];
      }
    }
  }
}

}  // namespace shoal
