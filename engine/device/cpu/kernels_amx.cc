// The amx family. Compiled with the avx512 flags and -mamx-{tile,bf16}.
#include "engine/device/cpu/table_inl.h"
#include "engine/device/cpu/vec_avx512.h"

namespace sluice::cpu {

const Kernels* AmxKernels() {
  static constexpr Kernels kTable = MakeKernels<Avx512>("amx");
  return &kTable;
}

}  // namespace sluice::cpu
