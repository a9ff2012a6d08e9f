// The avx512 family. Compiled with -mavx512{f,bw,vl,dq}.
#include "engine/device/cpu/table_inl.h"
#include "engine/device/cpu/vec_avx512.h"

namespace sluice::cpu {

const Kernels* Avx512Kernels() {
  static constexpr Kernels kTable = MakeKernels<Avx512>("avx512");
  return &kTable;
}

}  // namespace sluice::cpu
