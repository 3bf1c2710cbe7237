// AVX-512, 16 lanes. Compiled without contraction: see quantize.h.
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

void quantize_avx512(const QuantizeArgs& args) { quantize_all(args); }

}  // namespace shoal
