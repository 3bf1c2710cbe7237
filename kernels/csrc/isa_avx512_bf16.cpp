// AVX-512 with BF16 and VBMI (Zen 4 and 5, Sapphire Rapids and later): dot products of bf16 pairs summed in fp32.
//
// vdpbf16ps reads subnormal bf16 as zero: codes have none (the smallest e4m3 is 2^-9), activations below 1e-38 do not
// matter.
#include <immintrin.h>

#include "kernel_set.h"

namespace shoal {
namespace {

#include "avx512_ops.inl"
#include "engine.inl"
#include "bf16_engine.inl"
#include "panel.inl"

}  // namespace

const KernelSet& avx512_bf16_kernels() {
  static const KernelSet set = [] {
    KernelSet made = make_kernels();
    fill_panels<Bf16Engine>(made.panel_bf16);
    made.multiply = multiply<Bf16Engine>;
    made.probe_flop = probe_flop<Bf16Engine>();
    return made;
  }();
  return set;
}

}  // namespace shoal
