#include "engine/device/cpu/gate.h"

#include <algorithm>
#include <limits>

namespace sluice {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

int64_t ArgMax(const float* x, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i) {
    if (x[i] > x[best]) best = i;  // strict: the lowest index wins a tie
  }
  return best;
}

// DeepSeek-V2 ranks a group by its best expert, V3 by the sum of its two best.
float GroupScore(const float* x, int64_t n, bool sum_of_two) {
  float first = kMasked, second = kMasked;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > first) {
      second = first;
      first = x[i];
    } else if (x[i] > second) {
      second = x[i];
    }
  }
  return sum_of_two && n > 1 ? first + second : first;
}

// Masks the experts of all but the topk_group best groups. Minus infinity, not zero: biased scores
// can be negative, and zero would then win.
void MaskGroups(const ModelSpec& spec, float* biased, float* groups) {
  const int64_t group_size = spec.n_routed_experts / spec.n_group;
  const bool sum_of_two = spec.gate == GateKind::kSigmoidNoAuxTc;
  for (int64_t g = 0; g < spec.n_group; ++g) {
    groups[g] = GroupScore(biased + g * group_size, group_size, sum_of_two);
  }
  constexpr float kKept = std::numeric_limits<float>::quiet_NaN();  // compares false: never again
  for (int64_t kept = 0; kept < spec.topk_group; ++kept) {
    int64_t best = -1;
    for (int64_t g = 0; g < spec.n_group; ++g) {
      if (groups[g] == groups[g] && (best < 0 || groups[g] > groups[best])) best = g;
    }
    if (best < 0) break;
    groups[best] = kKept;
  }
  for (int64_t g = 0; g < spec.n_group; ++g) {
    if (groups[g] == groups[g]) std::fill_n(biased + g * group_size, group_size, kMasked);
  }
}

}  // namespace

void SelectExperts(const ModelSpec& spec, const float* scores, const float* bias, float* biased,
                   float* groups, int32_t* experts, float* weights) {
  const int64_t n = spec.n_routed_experts;
  const int64_t k = spec.num_experts_per_tok;
  const bool softmax =
      spec.gate == GateKind::kSoftmaxGreedy || spec.gate == GateKind::kSoftmaxGroupLimited;
  for (int64_t i = 0; i < n; ++i) biased[i] = bias != nullptr ? scores[i] + bias[i] : scores[i];
  const bool grouped =
      spec.gate == GateKind::kSoftmaxGroupLimited || spec.gate == GateKind::kSigmoidNoAuxTc;
  if (grouped && spec.topk_group < spec.n_group) MaskGroups(spec, biased, groups);

  for (int64_t j = 0; j < k; ++j) {
    const int64_t best = ArgMax(biased, n);
    experts[j] = static_cast<int32_t>(best);
    biased[best] = kMasked;
  }
  std::sort(experts, experts + k);

  // The bias steers selection only; the weight is the plain score.
  float sum = 0;
  for (int64_t j = 0; j < k; ++j) {
    weights[j] = scores[experts[j]];
    sum += weights[j];
  }
  const float scale = static_cast<float>(spec.routed_scaling_factor);
  for (int64_t j = 0; j < k; ++j) {
    if (spec.norm_topk_prob) weights[j] /= sum + 1e-20f;
    // V2's own code normalises instead of scaling; V3's does both.
    if (!(softmax && spec.norm_topk_prob && k > 1)) weights[j] *= scale;
  }
}

}  // namespace sluice
