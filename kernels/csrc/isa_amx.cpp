// AMX tiles (Sapphire Rapids and later): bf16 products of 16 x 16 x 32, sums in fp32. Rounding 0 and all else are those of
// the AVX-512 BF16 path.
#include <immintrin.h>

#include "kernel_set.h"

namespace shoal {
namespace {

#include "avx512_ops.inl"
#include "engine.inl"
#include "bf16_engine.inl"
#include "hardware_tiles.inl"
using TileEngine = Bf16Engine;
#include "tiles.inl"

}  // namespace

const KernelSet& amx_kernels() {
  static const KernelSet set = [] {
    KernelSet made = avx512_bf16_kernels();
    fill_tiles(made.tiles);
    return made;
  }();
  return set;
}

}  // namespace shoal
