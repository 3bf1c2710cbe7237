// Which instruction sets this processor offers, and the kernels made for each.
#pragma once

#include <string>
#include <vector>

#include "kernel_set.h"

namespace shoal {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx, kAmxEmulated };

// The paths that this processor can run, the fastest last. Asks the system for the use of tiles, once in a process, where the
// processor has them: if it says no, there is no kAmx. Never kAmxEmulated, which runs everywhere and is for tests.
const std::vector<Isa>& available_isas();

const char* name_of(Isa isa);
const KernelSet& kernels_of(Isa isa);

// The available path, or kAmxEmulated, of this name. Throws std::invalid_argument if there is none.
Isa isa_named(const std::string& name);

}  // namespace shoal
