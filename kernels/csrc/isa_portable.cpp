// C++ without intrinsics: for processors that no other path fits, and the one that every machine can test.
#include "kernel_set.h"

namespace shoal {
namespace {

#include "portable_ops.inl"
#include "engine.inl"
#include "panel.inl"

}  // namespace

const KernelSet& portable_kernels() {
  static const KernelSet set = make_kernels();
  return set;
}

}  // namespace shoal
