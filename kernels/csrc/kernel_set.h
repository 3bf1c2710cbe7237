// What one instruction set offers: a table of functions, filled by each isa_*.cpp and chosen at run time.
#pragma once

#include "layout.h"

namespace shoal {

// One panel (64 outputs) times some rows of activations.
struct PanelArgs {
  const uint8_t* codes;      // the panel's stream
  const uint8_t* scales;     // the panel's scales, or those of its block of 128 rows; nullptr without scales
  int64_t columns;           // padded
  const void* const* rows;   // num_rows pointers to f32[columns] or bf16[columns], zero where padded
  int64_t num_rows;
  float* out;                // f32[num_rows, 64], overwritten
  uint8_t* scratch;          // kScratchBytes, aligned to 64
};

// A decoded piece of a panel: 256 columns x 64 rows in fp32, or bf16 with half of it unused.
constexpr int kPieceColumns = 256;
constexpr size_t kScratchBytes = size_t{kPieceColumns} * kPanelRows * sizeof(float);

using PanelFn = void (*)(const PanelArgs&);

// Several panels times rows in tile registers (tiles.inl). x is bf16 in row blocks: 16 rows, 32 columns of each after the
// other, so that 1 KiB is a tile; rows that pad a block may hold anything.
constexpr int kNumTiles = 8;
constexpr int kFirstWeightTile = 6;  // the tiles before it hold one row for each row of activations
constexpr int kTileRowBytes = 64;
constexpr int kMaxTilePanels = 4;  // more would crowd activations and sums of 512 rows out of a 2 MiB L2
constexpr int64_t kTilePieceColumns = 256;
constexpr int64_t kTilePieceBytes = kTilePieceColumns * kPanelRows * 2;
constexpr int64_t kTileScratchBytes = kTilePieceBytes + 8 * kTileRows * kTileRowBytes;

struct TilePanel {
  const uint8_t* codes;
  const uint8_t* scales;
  float* out;  // f32[num_rows rounded up to 16, 64], overwritten
};

struct TileArgs {
  TilePanel panels[kMaxTilePanels];
  int num_panels;
  int64_t columns;      // padded
  const uint8_t* x;     // the first row block
  int64_t block_bytes;  // from row block to row block
  int64_t num_rows;
  uint8_t* scratch;  // kTileScratchBytes, aligned to 64
};

using TilesFn = void (*)(const TileArgs&);

// What stands between an expert's matrices (kernels/activation.py): g = min(gate, limit), u = up within +-limit,
// h = g sigmoid(alpha g) (u + up_offset).
struct Activation {
  float limit, alpha, up_offset;
};

struct KernelSet {
  PanelFn panel_f32[kNumFormats];   // rows are fp32, products and sums in fp32
  PanelFn panel_bf16[kNumFormats];  // rows are bf16, bf16 dot products summed in fp32; nullptr where there are none
  TilesFn tiles[kNumFormats];       // the same with other sums, used instead wherever there are some

  // h over n values; is_rounded: gate, up and h are rounded to bf16. h is f32 or bf16 (as uint16).
  void (*swiglu_f32)(const float* gate, const float* up, int64_t n, Activation activation, bool is_rounded, float* h);
  void (*swiglu_bf16)(const float* gate, const float* up, int64_t n, Activation activation, uint16_t* h);

  // The nearest bf16 numbers of n values, ties to even.
  void (*round_to_bf16)(const float* values, int64_t n, uint16_t* rounded);

  // sum += bias over n values.
  void (*add)(float* sum, const float* bias, int64_t n);

  // y += weight * term over n values; is_rounded: the product is rounded to bf16 before it is added.
  void (*accumulate)(float* y, const float* term, float weight, int64_t n, bool is_rounded);

  // Probes of the machine's limits, for benchmarks. Both return something that depends on all their work.
  float (*read)(const uint8_t* from, int64_t num_bytes);  // a multiple of 256 bytes, aligned to 4
  float (*multiply)(const uint8_t* operands, int64_t num_rounds);  // in registers; 64 bytes of operands
  int64_t probe_flop;                                              // operations in a round of `multiply`
};

const KernelSet& portable_kernels();
const KernelSet& amx_emulated_kernels();
#ifdef SHOAL_X86
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
const KernelSet& avx512_bf16_kernels();
const KernelSet& amx_kernels();
#endif

}  // namespace shoal
