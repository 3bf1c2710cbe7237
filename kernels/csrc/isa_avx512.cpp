// AVX-512 without bf16 instructions (Skylake-X to Ice Lake): fp32 arithmetic, 16 lanes.
#include <immintrin.h>

#include "kernel_set.h"

namespace shoal {
namespace {

#include "avx512_ops.inl"
#include "engine.inl"
#include "panel.inl"

}  // namespace

const KernelSet& avx512_kernels() {
  static const KernelSet set = make_kernels();
  return set;
}

}  // namespace shoal
