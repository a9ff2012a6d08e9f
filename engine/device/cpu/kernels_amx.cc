// The amx family: bf16 products and attention by AMX tiles, everything else as avx512. Compiled
// with that family's flags.
#include "engine/device/cpu/amx_attention_inl.h"
#include "engine/device/cpu/amx_gemm_inl.h"
#include "engine/device/cpu/table_inl.h"
#include "engine/device/cpu/vec_avx512.h"

namespace sluice::cpu {

const Kernels* AmxKernels() {
  static constexpr Kernels kTable = [] {
    Kernels table = MakeKernels<Avx512>("amx");
    table.gemm_bf16 = GemmAmx;
    table.attention_scratch_bytes = AmxAttentionScratchBytes;
    table.attention_bf16 = AmxAttention;
    return table;
  }();
  return &kTable;
}

}  // namespace sluice::cpu
