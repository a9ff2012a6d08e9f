// Fills a kernel table from the templates for one vector type.
#pragma once

#include "engine/device/cpu/attention_inl.h"
#include "engine/device/cpu/gemm_inl.h"
#include "engine/device/cpu/kernels.h"
#include "engine/device/cpu/rows_inl.h"

namespace sluice::cpu {
namespace {

template <class V>
constexpr Kernels MakeKernels(const char* name) {
  Kernels table{};
  table.name = name;
  table.gemm_f32 = Gemm<V, F32Product<V>>;
  table.gemm_bf16 = Gemm<V, Bf16Product<V>>;
  table.attention_scratch_bytes = AttentionScratchBytes;
  table.attention_f32 = Attention<V, F32Cache<V>>;
  table.attention_bf16 = Attention<V, Bf16Cache<V>>;
  table.attention_merge = AttentionMerge<V>;
  table.scale_f32 = ScaleF32<V>;
  table.scale_bf16 = ScaleBf16<V>;
  table.rms_norm = RmsNorm<V>;
  table.silu_mul_f32 = SiluMulF32<V>;
  table.silu_mul_bf16 = SiluMulBf16<V>;
  table.sigmoid = SigmoidRow<V>;
  table.softmax = SoftmaxRow<V>;
  return table;
}

}  // namespace
}  // namespace sluice::cpu
