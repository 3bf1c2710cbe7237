// Calls on a path with tile registers (tiles.inl): as moe.cpp, with activations in row blocks and several panels at once.
#include <algorithm>
#include <cstring>

#include "moe.h"

namespace shoal {
namespace {

constexpr int64_t kTileColumns = 32;
constexpr int64_t kTileBytes = kTileRows * kTileRowBytes;
constexpr int kItemsPerThread = 4;  // so that threads finish at about the same time

int64_t num_blocks_of(int64_t num_rows) { return (num_rows + kTileRows - 1) / kTileRows; }

// Panels that a thread takes at once: fewer where there would be too little to share out.
int64_t panels_at_once(int64_t num_panels, int num_threads, int64_t most) {
  return std::clamp(num_panels / (int64_t{num_threads} * kItemsPerThread), int64_t{1}, most);
}

}  // namespace

uint8_t* Runner::RowBlocks::at(int64_t block, int64_t row, int64_t column) const {
  return data + block * block_bytes + column / kTileColumns * kTileBytes + row * kTileRowBytes;
}

Runner::RowBlocks Runner::make_blocks(Buffer& buffer, int64_t num_blocks, int64_t padded_columns) {
  const int64_t block_bytes = padded_columns * kTileRows * 2 + kChunkBytes;  // blocks begin in different sets of a cache
  return {buffer.of_size(static_cast<size_t>(num_blocks * block_bytes)), block_bytes, padded_columns};
}

bool Runner::uses_tiles(Format format, Rounding rounding) const {
  return rounding == Rounding::kBf16 && kernels_.tiles[static_cast<int>(format)] != nullptr;
}

// The first row block of each expert's pairs, and the number of blocks at the end. Experts share no block.
std::vector<int64_t> Runner::first_blocks(const MoeCall& call) {
  std::vector<int64_t> first{0};
  for (size_t e = 0; e < call.experts.size(); ++e) {
    first.push_back(first.back() + num_blocks_of(call.offsets[e + 1] - call.offsets[e]));
  }
  return first;
}

void Runner::fill_block_row(const uint8_t* x, XType x_type, int64_t columns, const RowBlocks& to, int64_t block,
                            int64_t row) const {
  const int64_t x_bytes = x_type == XType::kBf16 ? 2 : 4;
  for (int64_t column = 0; column < to.columns; column += kTileColumns) {
    uint8_t* const out = to.at(block, row, column);
    const int64_t count = std::clamp(columns - column, int64_t{0}, kTileColumns);
    convert_values(x + column * x_bytes, x_type, count, Rounding::kBf16, true, out);
    std::memset(out + 2 * count, 0, static_cast<size_t>(2 * (kTileColumns - count)));
  }
}

void Runner::multiply_tiles(const std::vector<const Matrix*>& matrices, int64_t panel, int64_t num_panels,
                            const RowBlocks& x, int64_t block, int64_t num_rows, int thread) {
  TileArgs args{};
  for (int64_t i = 0; i < num_panels; ++i) {
    for (const Matrix* const matrix : matrices) {
      args.panels[args.num_panels] = {matrix->panel_codes(panel + i), matrix->panel_scales(panel + i),
                                      tile_sums(thread, args.num_panels)};
      ++args.num_panels;
    }
  }
  args.columns = matrices[0]->padded_columns();
  args.x = x.at(block, 0, 0);
  args.block_bytes = x.block_bytes;
  args.num_rows = num_rows;
  args.scratch = scratch_[static_cast<size_t>(thread)].get();
  kernels_.tiles[static_cast<int>(matrices[0]->format())](args);
}

float* Runner::tile_sums(int thread, int panel) const {
  uint8_t* const first = scratch_[static_cast<size_t>(thread)].get() + kTileScratchBytes;
  return reinterpret_cast<float*>(first) + panel * kRowsAtOnce * kPanelRows;
}

void Runner::gate_and_up_tiles(const MoeCall& call, size_t e, int64_t panel, int64_t num_panels, int64_t first_block,
                               const RowBlocks& x, const RowBlocks& hidden, int thread) {
  const Expert& expert = *call.experts[e];
  const int64_t num_pairs = call.offsets[e + 1] - call.offsets[e];
  for (int64_t first = 0; first < num_pairs; first += kRowsAtOnce) {
    const int64_t num_rows = std::min(kRowsAtOnce, num_pairs - first), block = first_block + first / kTileRows;
    multiply_tiles({expert.gate.get(), expert.up.get()}, panel, num_panels, x, block, num_rows, thread);
    for (int64_t i = 0; i < num_panels; ++i) {
      float *gate = tile_sums(thread, int(2 * i)), *up = tile_sums(thread, int(2 * i + 1));
      add_bias(expert.gate_bias, panel + i, num_rows, gate);
      add_bias(expert.up_bias, panel + i, num_rows, up);
      for (int64_t row = 0; row < num_rows; ++row, gate += kPanelRows, up += kPanelRows) {
        uint16_t h[kPanelRows];
        kernels_.swiglu_bf16(gate, up, kPanelRows, expert.activation, h);
        for (int64_t column = 0; column < kPanelRows; column += kTileColumns) {
          uint8_t* const to = hidden.at(block + row / kTileRows, row % kTileRows, (panel + i) * kPanelRows + column);
          std::memcpy(to, h + column, kTileRowBytes);
        }
      }
    }
  }
}

// Some panels of the output: their columns belong to this thread, and experts are added in their order.
void Runner::down_tiles(const MoeCall& call, const std::vector<int64_t>& first_block, int64_t panel, int64_t num_panels,
                        const RowBlocks& hidden, int thread) {
  const int64_t column = panel * kPanelRows, end = std::min(call.hidden, (panel + num_panels) * kPanelRows);
  for (int64_t row = 0; row < call.num_rows; ++row) {
    std::memset(call.y + row * call.hidden + column, 0, static_cast<size_t>(end - column) * sizeof(float));
  }
  for (size_t e = 0; e < call.experts.size(); ++e) {
    const int64_t num_pairs = call.offsets[e + 1] - call.offsets[e];
    for (int64_t first = 0; first < num_pairs; first += kRowsAtOnce) {
      const int64_t num_rows = std::min(kRowsAtOnce, num_pairs - first);
      multiply_tiles({call.experts[e]->down.get()}, panel, num_panels, hidden, first_block[e] + first / kTileRows,
                     num_rows, thread);
      for (int64_t i = 0; i < num_panels; ++i) {
        add_bias(call.experts[e]->down_bias, panel + i, num_rows, tile_sums(thread, int(i)));
        const int64_t from = column + i * kPanelRows, num_columns = std::min<int64_t>(kPanelRows, end - from);
        for (int64_t row = 0; row < num_rows; ++row) {
          const auto pair = static_cast<size_t>(call.offsets[e] + first + row);
          kernels_.accumulate(call.y + call.row_idx[pair] * call.hidden + from, tile_sums(thread, int(i)) + row * kPanelRows,
                              call.weights[pair], num_columns, true);
        }
      }
    }
  }
}

void Runner::run_tiles(const MoeCall& call) {
  const std::vector<int64_t> first_block = first_blocks(call);
  const int64_t num_blocks = first_block.back();
  const auto expert_of = [](const std::vector<int64_t>& firsts, int64_t item) {
    return static_cast<size_t>(std::upper_bound(firsts.begin(), firsts.end(), item) - firsts.begin()) - 1;
  };
  int64_t widest = 0;  // experts of one call may differ in inter
  for (const Expert* expert : call.experts) widest = std::max(widest, expert->down->padded_columns());
  const RowBlocks x = make_blocks(x_, num_blocks, call.experts[0]->gate->padded_columns());
  const RowBlocks hidden = make_blocks(hidden_, num_blocks, widest);
  const int64_t x_row_bytes = call.hidden * (call.x_type == XType::kBf16 ? 2 : 4);
  pool_.run(num_blocks, [&](int, int64_t block) {
    const size_t e = expert_of(first_block, block);
    const int64_t first = call.offsets[e] + (block - first_block[e]) * kTileRows;
    const int64_t num_rows = std::min<int64_t>(kTileRows, call.offsets[e + 1] - first);
    const int64_t written = call.experts[e]->gate->num_panels() * kPanelRows;  // columns that gate_and_up_tiles writes
    for (int64_t row = 0; row < num_rows; ++row) {
      const uint8_t* const from = call.x + call.row_idx[static_cast<size_t>(first + row)] * x_row_bytes;
      fill_block_row(from, call.x_type, call.hidden, x, block, row);
    }
    std::memset(hidden.at(block, 0, written), 0, static_cast<size_t>((widest - written) * kTileRows * 2));
  });
  std::vector<int64_t> first_item{0}, at_once;
  for (size_t e = 0; e < call.experts.size(); ++e) {
    const bool is_idle = call.offsets[e] == call.offsets[e + 1];
    const int64_t num_panels = call.experts[e]->gate->num_panels();
    at_once.push_back(panels_at_once(num_panels, num_threads(), kMaxTilePanels / 2));
    first_item.push_back(first_item.back() + (is_idle ? 0 : (num_panels + at_once[e] - 1) / at_once[e]));
  }
  pool_.run(first_item.back(), [&](int thread, int64_t item) {
    const size_t e = expert_of(first_item, item);
    const int64_t panel = (item - first_item[e]) * at_once[e];
    const int64_t num_panels = std::min(at_once[e], call.experts[e]->gate->num_panels() - panel);
    gate_and_up_tiles(call, e, panel, num_panels, first_block[e], x, hidden, thread);
  });
  const int64_t num_panels = call.experts[0]->down->num_panels();
  const int64_t down_at_once = panels_at_once(num_panels, num_threads(), kMaxTilePanels);
  pool_.run((num_panels + down_at_once - 1) / down_at_once, [&](int thread, int64_t item) {
    const int64_t panel = item * down_at_once;
    down_tiles(call, first_block, panel, std::min(down_at_once, num_panels - panel), hidden, thread);
  });
}

void Runner::linear_tiles(const Matrix& matrix, const uint8_t* x, XType x_type, int64_t num_rows, int64_t num_groups,
                          LinearOutput y) {
  const int64_t group_blocks = num_blocks_of(num_rows), row_bytes = matrix.columns() * (x_type == XType::kBf16 ? 2 : 4);
  const RowBlocks blocks = make_blocks(x_, group_blocks * num_groups, matrix.padded_columns());
  pool_.run(group_blocks * num_groups, [&](int, int64_t block) {
    const int64_t group = block / group_blocks, first = block % group_blocks * kTileRows;
    for (int64_t row = first; row < std::min<int64_t>(num_rows, first + kTileRows); ++row) {
      const uint8_t* const from = x + (group * num_rows + row) * row_bytes;
      fill_block_row(from, x_type, matrix.columns(), blocks, block, row - first);
    }
  });
  const int64_t group_width = matrix.rows() / num_groups, group_panels = matrix.num_panels() / num_groups;
  const int64_t at_once = std::min(group_panels, panels_at_once(matrix.num_panels(), num_threads(), kMaxTilePanels));
  const int64_t group_items = (group_panels + at_once - 1) / at_once;
  pool_.run(group_items * num_groups, [&](int thread, int64_t item) {
    const int64_t group = item / group_items, panel = item % group_items * at_once;  // panel: of the group's
    const int64_t num_panels = std::min(at_once, group_panels - panel);
    for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, num_rows - first), block = group * group_blocks + first / kTileRows;
      multiply_tiles({&matrix}, group * group_panels + panel, num_panels, blocks, block, count, thread);
      for (int64_t i = 0; i < num_panels; ++i) {
        const int64_t column = (panel + i) * kPanelRows, width = std::min<int64_t>(kPanelRows, group_width - column);
        for (int64_t row = 0; row < count; ++row) {
          store(tile_sums(thread, int(i)) + row * kPanelRows, width, y,
                (group * num_rows + first + row) * group_width + column);
        }
      }
    }
  });
}

}  // namespace shoal
