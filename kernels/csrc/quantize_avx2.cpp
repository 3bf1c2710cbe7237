// AVX2, 8 lanes. Compiled without contraction: see quantize.h.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "quantize.h"

namespace shoal {
namespace {

#include "quantize.inl"

}  // namespace

void quantize_avx2(const QuantizeArgs& args) { quantize_all(args); }

}  // namespace shoal
