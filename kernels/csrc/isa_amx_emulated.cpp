// The loops of the AMX path on tiles of plain C++: for tests on machines without AMX, by explicit request only.
#include "kernel_set.h"

namespace shoal {
namespace {

#include "portable_ops.inl"
#include "engine.inl"
#include "software_tiles.inl"

// Codes to pairs of bf16 columns, as Bf16Engine, from the portable decoders: what they give is a bf16 number exactly.
struct TileEngine {
  struct Weight {
    uint32_t pair[kTileRows];
  };
  static constexpr int kColumnsPerStep = 2;
  static constexpr float kFp8Factor = Ops::kFp8Factor;

  static uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
  }
  static void store(uint8_t* to, const Weight& w) { __builtin_memcpy(to, &w, sizeof w); }
  static Weight dequantized(Weight w, Ops::V scales) {
    for (int i = 0; i < kTileRows; ++i) {
      const float even = Ops::of_bits(w.pair[i] << 16) * scales.lane[i];
      const float odd = Ops::of_bits(w.pair[i] & 0xffff0000u) * scales.lane[i];
      w.pair[i] = bits_of(even) >> 16 | bits_of(odd);
    }
    return w;
  }
  template <Format F>
  static void decode(const uint8_t* chunk, Weight* out) {
    constexpr int kColumns = columns_per_chunk(codes_of(F));
    Ops::V columns[kColumns];
    F32Engine::decode<F>(chunk, columns);
    for (int k = 0; k < kColumns; ++k) {
      for (int i = 0; i < kTileRows; ++i) {
        const uint32_t bits = bits_of(columns[k].lane[i]);
        out[k / 2].pair[i] = k % 2 ? out[k / 2].pair[i] | bits : bits >> 16;
      }
    }
  }
};

#include "tiles.inl"

}  // namespace

const KernelSet& amx_emulated_kernels() {
  static const KernelSet set = [] {
    KernelSet made = portable_kernels();
    fill_tiles(made.tiles);
    return made;
  }();
  return set;
}

}  // namespace shoal
