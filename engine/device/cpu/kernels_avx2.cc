// The avx2 family. Compiled with -mavx2 -mfma.
#include "engine/device/cpu/table_inl.h"
#include "engine/device/cpu/vec_avx2.h"

namespace sluice::cpu {

const Kernels* Avx2Kernels() {
  static constexpr Kernels kTable = MakeKernels<Avx2>("avx2");
  return &kTable;
}

}  // namespace sluice::cpu
