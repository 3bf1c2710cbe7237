// One call: several experts over ragged groups of rows, in two phases (gate and up, then down) on a pool of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "isa.h"
#include "kernel_set.h"
#include "matrix.h"
#include "pool.h"

namespace shoal {

// One for each of a matrix's rows, then zeros up to its last panel's end; empty: none.
using Bias = std::vector<float>;

// gate and up: [inter, hidden], down: [hidden, inter], of one format. Biases: all three or none.
struct Expert {
  std::shared_ptr<const Matrix> gate, up, down;
  Activation activation;
  Bias gate_bias, up_bias, down_bias;
};

enum class Rounding { kF32 = 0, kBf16 = 1 };  // docs/adr/0004

enum class XType { kF32, kBf16 };

// Where a linear map's result goes: row-major, f32 or bf16 (rounded to nearest, ties to even).
struct LinearOutput {
  uint8_t* data;
  XType type;
};

// Arguments that check() has found to agree.
struct MoeCall {
  std::vector<const Expert*> experts;
  const uint8_t* x;  // f32|bf16[num_rows, hidden], any alignment
  XType x_type;
  int64_t num_rows, hidden;
  std::vector<int64_t> row_idx, offsets;
  std::vector<float> weights;  // per pair
  Rounding rounding;
  float* y;  // f32[num_rows, hidden], overwritten

  // Throws std::invalid_argument when something contradicts something.
  void check() const;
};

// Threads and memory for calls. Calls from several threads run one after another.
class Runner {
 public:
  // Results of these many rows, f32[512, 64], are 128 KiB: kernels keep two of them, or four, in an L2.
  static constexpr int64_t kRowsAtOnce = 512;

  Runner(Isa isa, int num_threads);
  Isa isa() const { return isa_; }
  int num_threads() const { return pool_.num_threads(); }
  void run(const MoeCall& call);
  // y = x W^T for plain linears: x f32|bf16[num_groups, num_rows, columns], y f32|bf16[num_groups, num_rows, rows / num_groups].
  // Group g has the rows g * (rows / num_groups) and so on of W: one call for a stack of small maps, such as one per head.
  // With more than one group, rows / num_groups is a multiple of kPanelRows. The sums are not rounded.
  void linear(const Matrix& matrix, const uint8_t* x, XType x_type, int64_t num_rows, int64_t num_groups,
              Rounding rounding, LinearOutput y);

  // For benchmarks, the best of several: bytes read per second from a buffer of this size, and multiply-adds in
  // registers in operations per second.
  double probe_read(int64_t num_bytes);
  double probe_multiply();

 private:
  struct Buffer {
    uint8_t* of_size(size_t size_bytes);
    AlignedBuffer memory;
    size_t capacity_bytes = 0;
  };
  // Rows that kernels read: fp32 or bf16, zero-padded, and not a multiple of 4 KiB apart.
  struct Rows {
    uint8_t* data;
    int64_t stride_bytes;
    bool is_bf16;
    uint8_t* row(int64_t i) const { return data + i * stride_bytes; }
  };

  // bf16 in row blocks, as TileArgs has them.
  struct RowBlocks {
    uint8_t* data;
    int64_t block_bytes;
    int64_t columns;  // padded
    uint8_t* at(int64_t block, int64_t row, int64_t column) const;  // column: a multiple of 32
  };

  static void convert_values(const uint8_t* x, XType x_type, int64_t count, Rounding rounding, bool to_bf16, uint8_t* out);
  bool uses_bf16(Format format, Rounding rounding) const;
  Rows make_rows(Buffer& buffer, int64_t num_rows, int64_t padded_columns, bool is_bf16);
  void convert_x(const uint8_t* x, XType x_type, int64_t columns, int64_t row, Rounding rounding, const Rows& to) const;
  void multiply(const Matrix& matrix, int64_t panel, const void* const* rows, int64_t num_rows, bool is_bf16, int thread,
                float* out);
  void add_bias(const Bias& bias, int64_t panel, int64_t num_rows, float* sums) const;
  void gate_and_up(const MoeCall& call, const Expert& expert, int64_t panel, int64_t begin, int64_t end, const Rows& x,
                   const Rows& hidden, int thread);
  void down(const MoeCall& call, int64_t panel, const Rows& hidden, int thread);

  // moe_tiles.cpp: the same with tile registers, in rounding 1.
  bool uses_tiles(Format format, Rounding rounding) const;
  void run_tiles(const MoeCall& call);
  void linear_tiles(const Matrix& matrix, const uint8_t* x, XType x_type, int64_t num_rows, int64_t num_groups,
                    LinearOutput y);
  void store(const float* sums, int64_t count, LinearOutput y, int64_t index) const;  // y[index..] = sums
  static RowBlocks make_blocks(Buffer& buffer, int64_t num_blocks, int64_t padded_columns);
  static std::vector<int64_t> first_blocks(const MoeCall& call);
  void fill_block_row(const uint8_t* x, XType x_type, int64_t columns, const RowBlocks& to, int64_t block, int64_t row) const;
  void multiply_tiles(const std::vector<const Matrix*>& matrices, int64_t panel, int64_t num_panels, const RowBlocks& x,
                      int64_t block, int64_t num_rows, int thread);
  float* tile_sums(int thread, int panel) const;
  void gate_and_up_tiles(const MoeCall& call, size_t e, int64_t panel, int64_t num_panels, int64_t first_block,
                         const RowBlocks& x, const RowBlocks& hidden, int thread);
  void down_tiles(const MoeCall& call, const std::vector<int64_t>& first_block, int64_t panel, int64_t num_panels,
                  const RowBlocks& hidden, int thread);

  Isa isa_;
  const KernelSet& kernels_;
  Pool pool_;
  std::mutex mutex_;
  std::atomic<float> probe_result_{0};  // keeps probes from being optimized away
  Buffer x_, hidden_;
  std::vector<AlignedBuffer> scratch_;                // per thread: a decoded piece, then two blocks of results
  std::vector<std::vector<const void*>> row_pointers_;  // per thread
};

}  // namespace shoal
