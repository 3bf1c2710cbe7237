#include "isa.h"

#include <stdexcept>

#if defined(SHOAL_X86)
#include <cpuid.h>
#endif
#if defined(SHOAL_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace shoal {
namespace {

#if defined(SHOAL_X86)

// Intel SDM volume 1, chapter 18: CPUID leaf 7 has AMX-BF16 and AMX-TILE, XCR0 says that the system saves both states.
bool has_amx() {
  unsigned int a, b, c, d;
  constexpr unsigned int kOsXsave = 1u << 27, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsXsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
  constexpr unsigned int kTileStates = 1u << 17 | 1u << 18;
  unsigned int low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileStates) == kTileStates;
}

// Linux gives a process 8 KiB of tiles a thread only when it asks (Documentation/arch/x86/xstate.rst; Linux 5.16).
bool is_amx_permitted() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}

std::vector<Isa> find_isas() {
  std::vector<Isa> found{Isa::kPortable};
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return found;
  found.push_back(Isa::kAvx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq")) {
    return found;
  }
  found.push_back(Isa::kAvx512);
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) return found;
  found.push_back(Isa::kAvx512Bf16);
  if (has_amx() && is_amx_permitted()) found.push_back(Isa::kAmx);
  return found;
}

#else

std::vector<Isa> find_isas() { return {Isa::kPortable}; }

#endif

}  // namespace

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}

const char* name_of(Isa isa) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"};
  return kNames[static_cast<int>(isa)];
}

const KernelSet& kernels_of(Isa isa) {
  switch (isa) {
#if defined(SHOAL_X86)
    case Isa::kAvx2: return avx2_kernels();
    case Isa::kAvx512: return avx512_kernels();
    case Isa::kAvx512Bf16: return avx512_bf16_kernels();
    case Isa::kAmx: return amx_kernels();
#endif
    case Isa::kAmxEmulated: return amx_emulated_kernels();
    default: return portable_kernels();
  }
}

Isa isa_named(const std::string& name) {
  for (const Isa isa : available_isas()) {
    if (name == name_of(isa)) return isa;
  }
  if (name == name_of(Isa::kAmxEmulated)) return Isa::kAmxEmulated;
  throw std::invalid_argument("this processor has no path '" + name + "'");
}

}  // namespace shoal
