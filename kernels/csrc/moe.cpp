#include "moe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

namespace shoal {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr size_t kBlockFloats = size_t{Runner::kRowsAtOnce} * kPanelRows;

uint16_t bf16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float float_of_bf16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

constexpr int kProbes = 64;  // of 1 to 2 ms, of which the best counts: a limit is what was reached undisturbed

template <class Function>
double seconds_of(const Function& function) {
  const auto started = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void fail(const std::string& message) { throw std::invalid_argument(message); }

void check_expert(const Expert& expert, int64_t hidden) {
  const Matrix &gate = *expert.gate, &up = *expert.up, &down = *expert.down;
  if (gate.format() != up.format() || gate.format() != down.format()) fail("gate, up and down are of different formats");
  if (gate.rows() != up.rows() || gate.columns() != up.columns() || down.rows() != gate.columns() ||
      down.columns() != gate.rows()) {
    fail("gate and up must be [inter, hidden] and down [hidden, inter]");
  }
  if (gate.columns() != hidden) {
    fail("x has width " + std::to_string(hidden) + ", the expert " + std::to_string(gate.columns()));
  }
}

}  // namespace

void MoeCall::check() const {
  for (const Expert* expert : experts) {
    check_expert(*expert, hidden);
    if (expert->gate->format() != experts[0]->gate->format()) fail("experts of different formats in one call");
  }
  const auto num_pairs = static_cast<int64_t>(row_idx.size());
  if (weights.size() != row_idx.size()) fail("row_idx and topk_weights differ in length");
  if (offsets.size() != experts.size() + 1 || offsets.front() != 0 || offsets.back() != num_pairs ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    fail("offsets must ascend from 0 to " + std::to_string(num_pairs) + " in " + std::to_string(experts.size() + 1) +
         " entries");
  }
  for (const int64_t row : row_idx) {
    if (row < 0 || row >= num_rows) fail("row_idx " + std::to_string(row) + " for " + std::to_string(num_rows) + " rows");
  }
}

Runner::Runner(Isa isa, int num_threads) : isa_(isa), kernels_(kernels_of(isa)), pool_(num_threads) {
  const bool has_tiles = kernels_.tiles[static_cast<int>(Format::kBf16)] != nullptr;
  const size_t size_bytes = std::max(kScratchBytes + 2 * kBlockFloats * sizeof(float),
                                     has_tiles ? kTileScratchBytes + kMaxTilePanels * kBlockFloats * sizeof(float) : 0);
  for (int thread = 0; thread < num_threads; ++thread) scratch_.push_back(allocate_aligned(size_bytes));
  row_pointers_.resize(static_cast<size_t>(num_threads), std::vector<const void*>(kRowsAtOnce));
}

uint8_t* Runner::Buffer::of_size(size_t size_bytes) {
  if (size_bytes > capacity_bytes) {
    memory.reset();
    memory = allocate_aligned(size_bytes);
    capacity_bytes = size_bytes;
  }
  return memory.get();
}

bool Runner::uses_bf16(Format format, Rounding rounding) const {
  return rounding == Rounding::kBf16 && kernels_.panel_bf16[static_cast<int>(format)] != nullptr;
}

Runner::Rows Runner::make_rows(Buffer& buffer, int64_t num_rows, int64_t padded_columns, bool is_bf16) {
  // The line in between keeps rows of 2048 bf16 (4 KiB) from all falling into the same sets of a cache.
  const int64_t stride_bytes = padded_columns * (is_bf16 ? 2 : 4) + kLineBytes;
  return {buffer.of_size(static_cast<size_t>(num_rows * stride_bytes)), stride_bytes, is_bf16};
}

void Runner::convert_values(const uint8_t* x, XType x_type, int64_t count, Rounding rounding, bool to_bf16, uint8_t* out) {
  if (x_type == XType::kBf16 && to_bf16) {
    std::memcpy(out, x, static_cast<size_t>(2 * count));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    float value;
    if (x_type == XType::kBf16) {
      std::memcpy(&half, x + 2 * i, 2);
      value = float_of_bf16(half);
    } else {
      std::memcpy(&value, x + 4 * i, 4);
      half = bf16_of(value);
      if (rounding == Rounding::kBf16) value = float_of_bf16(half);
    }
    if (to_bf16) std::memcpy(out + 2 * i, &half, 2);
    else std::memcpy(out + 4 * i, &value, 4);
  }
}

void Runner::convert_x(const uint8_t* x, XType x_type, int64_t columns, int64_t row, Rounding rounding,
                       const Rows& to) const {
  uint8_t* const out = to.row(row);
  const int64_t out_bytes = to.is_bf16 ? 2 : 4, x_bytes = x_type == XType::kBf16 ? 2 : 4;
  std::memset(out + columns * out_bytes, 0, static_cast<size_t>(to.stride_bytes - columns * out_bytes));
  convert_values(x + row * columns * x_bytes, x_type, columns, rounding, to.is_bf16, out);
}

void Runner::multiply(const Matrix& matrix, int64_t panel, const void* const* rows, int64_t num_rows, bool is_bf16,
                      int thread, float* out) {
  const int format = static_cast<int>(matrix.format());
  const PanelFn panel_kernel = is_bf16 ? kernels_.panel_bf16[format] : kernels_.panel_f32[format];
  panel_kernel({matrix.panel_codes(panel), matrix.panel_scales(panel), matrix.padded_columns(), rows, num_rows, out,
                scratch_[static_cast<size_t>(thread)].get()});
}

void Runner::add_bias(const Bias& bias, int64_t panel, int64_t num_rows, float* sums) const {
  if (bias.empty()) return;
  for (int64_t i = 0; i < num_rows; ++i) kernels_.add(sums + i * kPanelRows, bias.data() + panel * kPanelRows, kPanelRows);
}

void Runner::gate_and_up(const MoeCall& call, const Expert& expert, int64_t panel, int64_t begin, int64_t end,
                         const Rows& x, const Rows& hidden, int thread) {
  auto* const gate = reinterpret_cast<float*>(scratch_[static_cast<size_t>(thread)].get() + kScratchBytes);
  float* const up = gate + kBlockFloats;
  const void** const rows = row_pointers_[static_cast<size_t>(thread)].data();
  for (int64_t first = begin; first < end; first += kRowsAtOnce) {
    const int64_t num_rows = std::min(kRowsAtOnce, end - first);
    for (int64_t i = 0; i < num_rows; ++i) rows[i] = x.row(call.row_idx[static_cast<size_t>(first + i)]);
    multiply(*expert.gate, panel, rows, num_rows, x.is_bf16, thread, gate);
    multiply(*expert.up, panel, rows, num_rows, x.is_bf16, thread, up);
    add_bias(expert.gate_bias, panel, num_rows, gate);
    add_bias(expert.up_bias, panel, num_rows, up);
    for (int64_t i = 0; i < num_rows; ++i) {
      uint8_t* const to = hidden.row(first + i) + panel * kPanelRows * (hidden.is_bf16 ? 2 : 4);
      if (hidden.is_bf16) {
        kernels_.swiglu_bf16(gate + i * kPanelRows, up + i * kPanelRows, kPanelRows, expert.activation,
                             reinterpret_cast<uint16_t*>(to));
      } else {
        kernels_.swiglu_f32(gate + i * kPanelRows, up + i * kPanelRows, kPanelRows, expert.activation,
                            call.rounding == Rounding::kBf16, reinterpret_cast<float*>(to));
      }
    }
  }
}

// One panel of the output: its 64 columns belong to this thread, and experts are added in their order.
void Runner::down(const MoeCall& call, int64_t panel, const Rows& hidden, int thread) {
  auto* const terms = reinterpret_cast<float*>(scratch_[static_cast<size_t>(thread)].get() + kScratchBytes);
  const void** const rows = row_pointers_[static_cast<size_t>(thread)].data();
  const int64_t column = panel * kPanelRows, num_columns = std::min<int64_t>(kPanelRows, call.hidden - column);
  for (int64_t row = 0; row < call.num_rows; ++row) {
    std::memset(call.y + row * call.hidden + column, 0, static_cast<size_t>(num_columns) * sizeof(float));
  }
  for (size_t e = 0; e < call.experts.size(); ++e) {
    const int64_t end = call.offsets[e + 1];
    for (int64_t first = call.offsets[e]; first < end; first += kRowsAtOnce) {
      const int64_t num_rows = std::min(kRowsAtOnce, end - first);
      for (int64_t i = 0; i < num_rows; ++i) rows[i] = hidden.row(first + i);
      multiply(*call.experts[e]->down, panel, rows, num_rows, hidden.is_bf16, thread, terms);
      add_bias(call.experts[e]->down_bias, panel, num_rows, terms);
      for (int64_t i = 0; i < num_rows; ++i) {
        const auto pair = static_cast<size_t>(first + i);
        kernels_.accumulate(call.y + call.row_idx[pair] * call.hidden + column, terms + i * kPanelRows,
                            call.weights[pair], num_columns, call.rounding == Rounding::kBf16);
      }
    }
  }
}

void Runner::run(const MoeCall& call) {
  const std::lock_guard lock(mutex_);
  if (call.experts.empty() || call.row_idx.empty()) {
    std::memset(call.y, 0, static_cast<size_t>(call.num_rows * call.hidden) * sizeof(float));
    return;
  }
  if (uses_tiles(call.experts[0]->gate->format(), call.rounding)) return run_tiles(call);
  const Matrix &gate = *call.experts[0]->gate, &down_matrix = *call.experts[0]->down;
  const bool is_bf16 = uses_bf16(gate.format(), call.rounding);
  const Rows x = make_rows(x_, call.num_rows, gate.padded_columns(), is_bf16);
  const auto num_pairs = static_cast<int64_t>(call.row_idx.size());
  int64_t widest = 0;  // experts of one call may differ in inter
  std::vector<int64_t> first_item{0};
  for (size_t e = 0; e < call.experts.size(); ++e) {
    const bool is_idle = call.offsets[e] == call.offsets[e + 1];
    first_item.push_back(first_item.back() + (is_idle ? 0 : call.experts[e]->gate->num_panels()));
    widest = std::max(widest, call.experts[e]->down->padded_columns());
  }
  const Rows hidden = make_rows(hidden_, num_pairs, widest, is_bf16);
  constexpr int64_t kRowsPerItem = 8;  // converting fewer rows than this is not worth waking a thread
  pool_.run((call.num_rows + kRowsPerItem - 1) / kRowsPerItem, [&](int, int64_t item) {
    const int64_t end = std::min(call.num_rows, (item + 1) * kRowsPerItem);
    for (int64_t row = item * kRowsPerItem; row < end; ++row) {
      convert_x(call.x, call.x_type, call.hidden, row, call.rounding, x);
    }
  });
  const int64_t element_bytes = is_bf16 ? 2 : 4;
  for (size_t e = 0; e < call.experts.size(); ++e) {  // columns that gate_and_up does not write
    const int64_t written = call.experts[e]->gate->num_panels() * kPanelRows * element_bytes;
    for (int64_t pair = call.offsets[e]; pair < call.offsets[e + 1]; ++pair) {
      std::memset(hidden.row(pair) + written, 0, static_cast<size_t>(hidden.stride_bytes - written));
    }
  }
  pool_.run(first_item.back(), [&](int thread, int64_t item) {
    const auto after = std::upper_bound(first_item.begin(), first_item.end(), item);
    const auto e = static_cast<size_t>(after - first_item.begin()) - 1;
    gate_and_up(call, *call.experts[e], item - first_item[e], call.offsets[e], call.offsets[e + 1], x, hidden, thread);
  });
  pool_.run(down_matrix.num_panels(), [&](int thread, int64_t panel) { down(call, panel, hidden, thread); });
}

void Runner::linear(const Matrix& matrix, const uint8_t* x, XType x_type, int64_t num_rows, int64_t num_groups,
                    Rounding rounding, LinearOutput y) {
  const std::lock_guard lock(mutex_);
  if (uses_tiles(matrix.format(), rounding)) {
    return linear_tiles(matrix, x, x_type, num_rows, num_groups, y);
  }
  const bool is_bf16 = uses_bf16(matrix.format(), rounding);
  const int64_t group_width = matrix.rows() / num_groups, num_all = num_rows * num_groups;
  const Rows rows = make_rows(x_, num_all, matrix.padded_columns(), is_bf16);
  constexpr int64_t kRowsPerItem = 8;  // as in run()
  pool_.run((num_all + kRowsPerItem - 1) / kRowsPerItem, [&](int, int64_t item) {
    const int64_t end = std::min(num_all, (item + 1) * kRowsPerItem);
    for (int64_t row = item * kRowsPerItem; row < end; ++row) {
      convert_x(x, x_type, matrix.columns(), row, rounding, rows);
    }
  });
  pool_.run(num_rows ? matrix.num_panels() : 0, [&](int thread, int64_t panel) {
    auto* const block = reinterpret_cast<float*>(scratch_[static_cast<size_t>(thread)].get() + kScratchBytes);
    const void** const pointers = row_pointers_[static_cast<size_t>(thread)].data();
    const int64_t group = panel * kPanelRows / group_width, column = panel * kPanelRows - group * group_width;
    const int64_t num_columns = std::min<int64_t>(kPanelRows, group_width - column);
    for (int64_t first = group * num_rows; first < (group + 1) * num_rows; first += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, (group + 1) * num_rows - first);
      for (int64_t i = 0; i < count; ++i) pointers[i] = rows.row(first + i);
      multiply(matrix, panel, pointers, count, is_bf16, thread, block);
      for (int64_t i = 0; i < count; ++i) {
        store(block + i * kPanelRows, num_columns, y, (first + i) * group_width + column);
      }
    }
  });
}

void Runner::store(const float* sums, int64_t count, LinearOutput y, int64_t index) const {
  if (y.type == XType::kF32) {
    std::memcpy(y.data + 4 * index, sums, static_cast<size_t>(4 * count));
  } else {
    kernels_.round_to_bf16(sums, count, reinterpret_cast<uint16_t*>(y.data) + index);
  }
}

double Runner::probe_read(int64_t num_bytes) {
  const std::lock_guard lock(mutex_);
  constexpr int64_t kItemBytes = int64_t{1} << 20;
  num_bytes = round_up(num_bytes, kItemBytes * kProbes);
  const int64_t probe_bytes = num_bytes / kProbes;  // each probe reads memory that the ones before it did not
  const AlignedBuffer buffer = allocate_aligned(static_cast<size_t>(num_bytes));
  std::memset(buffer.get(), 0, static_cast<size_t>(num_bytes));
  double best_s = 1e9;
  for (int i = 0; i < kProbes; ++i) {
    best_s = std::min(best_s, seconds_of([&] {
      pool_.run(probe_bytes / kItemBytes, [&](int, int64_t item) {
        const uint8_t* const from = buffer.get() + i * probe_bytes + item * kItemBytes;
        probe_result_.store(kernels_.read(from, kItemBytes), std::memory_order_relaxed);
      });
    }));
  }
  return static_cast<double>(probe_bytes) / best_s;
}

double Runner::probe_multiply() {
  const std::lock_guard lock(mutex_);
  constexpr int64_t kRounds = 2'000, kItems = 100;  // small items: a thread that wakes late does not count
  alignas(64) const uint8_t zeros[kChunkBytes] = {};
  double best_s = 1e9;
  for (int i = 0; i < kProbes; ++i) {
    best_s = std::min(best_s, seconds_of([&] {
      pool_.run(kItems, [&](int, int64_t) {
        probe_result_.store(kernels_.multiply(zeros, kRounds), std::memory_order_relaxed);
      });
    }));
  }
  return static_cast<double>(kItems * kRounds * kernels_.probe_flop) / best_s;
}

}  // namespace shoal
