// Weights to integers with one searched scale a group: what kernels/scale_search.py defines, bit for bit.
#pragma once

#include <cstdint>

#include "isa.h"

namespace shoal {

// Integers low..high times a scale, and which scales are tried (scale_search.py's Grid).
struct Grid {
  int low, high;
  int scale_bits;  // significant bits of a scale
  int num_steps;
  bool is_signed;
};

struct QuantizeArgs {
  const float* weight;  // f32[rows, columns], finite, |w| <= 2^100
  int64_t rows, columns;
  int group;  // 32 or 128
  Grid grid;
  int8_t* codes;  // i8[rows, columns], overwritten
  float* scales;  // f32[rows, ceil(columns / group)], overwritten
};

// Elementwise IEEE operations and a fixed tree of additions: every path gives the same bytes. Files that define these
// are compiled without contraction to FMA.
void quantize_portable(const QuantizeArgs& args);
#ifdef SHOAL_X86
void quantize_avx2(const QuantizeArgs& args);
void quantize_avx512(const QuantizeArgs& args);
#endif

void quantize(Isa isa, const QuantizeArgs& args);

}  // namespace shoal
