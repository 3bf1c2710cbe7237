#include "quantize.h"

namespace shoal {

void quantize(Isa isa, const QuantizeArgs& args) {
  switch (isa) {
#if defined(SHOAL_X86)
    case Isa::kAvx2: return quantize_avx2(args);
    case Isa::kAvx512:
    case Isa::kAvx512Bf16:
    case Isa::kAmx: return quantize_avx512(args);
#endif
    default: return quantize_portable(args);
  }
}

}  // namespace shoal
