#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>
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
// Found among codes, which is quicker than among values.
float largest_magnitude(const StoredWeight& stored, int64_t row, int64_t begin, int64_t end) {
  int largest = 0;
  if (codes_of(stored.format) == Codes::kByte) {
    const uint8_t* const codes = stored.data + row * stored.columns;
    if (stored.format == Format::kFp8Block) {
      for (int64_t column = begin; column < end; ++column) largest = std::max(largest, codes[column] & 0x7f);
      return e4m3_magnitude(largest);
    }
    for (int64_t column = begin; column < end; ++column) {
      largest = std::max(largest, std::abs(int{static_cast<int8_t>(codes[column])}));
    }
    return float(largest);
  }
  constexpr uint8_t kInt4[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1};
  constexpr uint8_t kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, 1, 2, 3, 4, 6, 8, 12};
  const bool is_e2m1 = stored.format == Format::kMxfp4;
  const uint8_t* const sizes = is_e2m1 ? kTwiceE2m1 : kInt4;
  const uint8_t* const codes = stored.data + row * ((stored.columns + 1) / 2);
  uint8_t nibbles = 0;  // a group begins at an even column
  for (int64_t byte = begin >> 1; byte < end >> 1; ++byte) {
    nibbles = std::max(nibbles, std::max(sizes[codes[byte] & 15], sizes[codes[byte] >> 4]));
  }
  if (end & 1) nibbles = std::max(nibbles, sizes[codes[end >> 1] & 15]);
  return is_e2m1 ? 0.5f * float(nibbles) : float(nibbles);
}

void check_product(float scale, float maximum) {
  if (!std::isfinite(scale)) refuse("a scale that is not finite");
  if (!std::isfinite(scale * maximum)) refuse("a value that is not finite");
}

// docs/adr/0007: five bits, of which bf16 stores four, times a code's three are a bf16 number.
void check_int4_scale(uint8_t low_byte) {
  if (low_byte & 7) refuse("an int4 scale of more than 5 significant bits");
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

// Whole chunks of one row, from column `begin` (a chunk's first) to `end`, into the chunks of the row's tile.
void pack_chunks(const StoredWeight& stored, int64_t row, int64_t begin, int64_t end, uint8_t* tile) {
  const Codes codes = codes_of(stored.format);
  const int64_t per_chunk = columns_per_chunk(codes);
  const int r = int(row % kTileRows);
  uint8_t* chunk = tile + begin / per_chunk * kTilesPerPanel * kChunkBytes;
  constexpr int64_t kStep = kTilesPerPanel * kChunkBytes;
  const int64_t row_bytes = codes == Codes::kNibble ? (stored.columns + 1) / 2 : stored.columns * (4 / per_chunk);
  const uint8_t* from = stored.data + row * row_bytes + (codes == Codes::kNibble ? begin / 2 : begin * (4 / per_chunk));
  for (int64_t column = begin; column < end; column += per_chunk, chunk += kStep, from += 4) {  // a chunk takes 4 bytes
    uint8_t* const to = chunk + (codes == Codes::kF32 || codes == Codes::kBf16 ? 4 * r : byte_in_chunk(r, 0));
    switch (codes) {
      case Codes::kF32:
      case Codes::kBf16: std::memcpy(to, from, 4); break;
      case Codes::kByte:
        std::memcpy(to, from, 2);
        std::memcpy(to + 8, from + 2, 2);
        break;
      case Codes::kNibble:  // columns 0, 1 | 2, 3 | 4, 5 | 6, 7 become 0, 4 | 1, 5 and, eight bytes on, 2, 6 | 3, 7
        to[0] = static_cast<uint8_t>((from[0] & 15) | (from[2] & 15) << 4);
        to[1] = static_cast<uint8_t>(from[0] >> 4 | (from[2] & 0xf0));
        to[8] = static_cast<uint8_t>((from[1] & 15) | (from[3] & 15) << 4);
        to[9] = static_cast<uint8_t>(from[1] >> 4 | (from[3] & 0xf0));
    }
  }
}

// One value, for the columns of a row's last chunk that do not fill it.
void pack_value(const StoredWeight& stored, int64_t row, int64_t column, uint8_t* tile) {
  const Codes codes = codes_of(stored.format);
  const int64_t per_chunk = columns_per_chunk(codes), index = row * stored.columns + column;
  const int r = int(row % kTileRows), k = int(column % per_chunk);
  uint8_t* const chunk = tile + column / per_chunk * kTilesPerPanel * kChunkBytes;
  switch (codes) {
    case Codes::kF32: std::memcpy(chunk + 4 * r, stored.data + 4 * index, 4); break;
    case Codes::kBf16: std::memcpy(chunk + 4 * r + 2 * k, stored.data + 2 * index, 2); break;
    case Codes::kByte: chunk[byte_in_chunk(r, k)] = stored.data[index]; break;
    case Codes::kNibble:
      chunk[byte_in_chunk(r, k)] |= static_cast<uint8_t>(nibble_at(stored, row, column) << (k / 4 * 4));
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

Matrix::Matrix(Format format, int64_t rows, int64_t columns)
    : format_(format),
      rows_(rows),
      columns_(columns),
      padded_rows_(round_up(rows, kPanelRows)),
      padded_columns_(round_up(columns, kColumnAlign)),
      code_bytes_(code_size(format, padded_rows_, padded_columns_)),
      scale_bytes_(scale_size(format, padded_rows_, padded_columns_)) {}

Matrix::Matrix(const StoredWeight& stored) : Matrix(stored.format, stored.rows, stored.columns) {
  check_codes(stored);
  codes_ = allocate_aligned(code_bytes_);
  codes_at_ = codes_.get();
  pack_codes(stored);
  if (scales_of(format_) == Scales::kNone) return;
  scales_ = allocate_aligned(scale_bytes_);
  scales_at_ = scales_.get();
  pack_scales(stored);
}

Matrix::Matrix(Format format, int64_t rows, int64_t columns, const PackedBytes& packed,
               std::shared_ptr<const void> owner)
    : Matrix(format, rows, columns) {
  if (packed.code_bytes != code_bytes_ || packed.scale_bytes != scale_bytes_) refuse("not the bytes of such a matrix");
  for (const uint8_t* at : {packed.codes, packed.scales}) {
    if (reinterpret_cast<uintptr_t>(at) % kLineBytes) refuse("packed bytes that do not begin with a cache line");
  }
  owner_ = std::move(owner);
  codes_at_ = packed.codes;
  scales_at_ = packed.scales;
}

const uint8_t* Matrix::panel_codes(int64_t panel) const {
  return codes_at_ + panel * static_cast<int64_t>(code_bytes_) / num_panels();
}

const uint8_t* Matrix::panel_scales(int64_t panel) const {
  const int64_t groups = padded_columns_ / group_columns(format_);
  switch (scales_of(format_)) {
    case Scales::kNone: return nullptr;
    case Scales::kF32Block: return scales_at_ + panel * kPanelRows / kBlock * groups * 4;
    default: return scales_at_ + panel * groups * kPanelRows * static_cast<int64_t>(scale_bytes(scales_of(format_)));
  }
}

void Matrix::pack_codes(const StoredWeight& stored) {
  const int64_t per_chunk = columns_per_chunk(codes_of(format_));
  if (padded_rows_ != rows_ || padded_columns_ != columns_) std::memset(codes_.get(), 0, code_bytes_);
  const int64_t panel_bytes = padded_columns_ / per_chunk * kTilesPerPanel * kChunkBytes;
  const int64_t whole = columns_ / per_chunk * per_chunk;
  constexpr int64_t kColumnsAtOnce = 512;  // of a panel: 32 KiB of bytes, which stay in L1 while its rows are written
  for (int64_t panel = 0; panel < num_panels(); ++panel) {
    const int64_t first = panel * kPanelRows, last = std::min(rows_, first + kPanelRows);
    const auto tile_of = [&](int64_t row) {
      return codes_.get() + panel * panel_bytes + row % kPanelRows / kTileRows * kChunkBytes;
    };
    for (int64_t begin = 0; begin < whole; begin += kColumnsAtOnce) {
      const int64_t end = std::min(whole, begin + kColumnsAtOnce);
      for (int64_t row = first; row < last; ++row) pack_chunks(stored, row, begin, end, tile_of(row));
    }
    for (int64_t row = first; row < last; ++row) {
      for (int64_t column = whole; column < columns_; ++column) pack_value(stored, row, column, tile_of(row));
    }
  }
}

void Matrix::pack_scales(const StoredWeight& stored) {
  std::memset(scales_.get(), 0, scale_bytes_);  // padded codes are zero: any finite scale does
  const int64_t group = group_columns(format_), padded_groups = padded_columns_ / group;
  const int64_t groups = (columns_ + group - 1) / group;
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t end = (g + 1) * group < columns_ ? (g + 1) * group : columns_;
      const float largest = largest_magnitude(stored, row, g * group, end);
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
          if (codes_of(format_) == Codes::kNibble) check_int4_scale(stored.scale[2 * (row * groups + g)]);
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
