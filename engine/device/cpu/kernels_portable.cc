// The portable family: plain C++, any processor.
#include "engine/device/cpu/table_inl.h"
#include "engine/device/cpu/vec_portable.h"

namespace sluice::cpu {

const Kernels* PortableKernels() {
  static constexpr Kernels kTable = MakeKernels<Portable>("portable");
  return &kTable;
}

}  // namespace sluice::cpu
