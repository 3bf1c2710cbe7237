// Any processor: what the compiler's baseline has (SSE2 on x86-64). Compiled without contraction: see quantize.h.
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

void quantize_portable(const QuantizeArgs& args) { quantize_all(args); }

}  // namespace shoal
