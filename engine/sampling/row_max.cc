#include "engine/sampling/row_max.h"

#include <algorithm>
#include <cmath>

namespace sluice {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Four lanes as every 64-bit processor has them, spelled out: from plain loops GCC makes scalar
// code here, four times slower. The maximum does not depend on the order.
using Lanes = float __attribute__((vector_size(16)));
using UnalignedLanes = float __attribute__((vector_size(16), aligned(4)));
using LaneMask = int __attribute__((vector_size(16)));
constexpr size_t kLanes = 4;
constexpr size_t kChains = 4;  // independent, so that they overlap

struct BlockMax {
  float value = kLowest;
  bool has_nan = false;
};

BlockMax FindBlockMax(const float* values, size_t size) {
  Lanes greatest[kChains];
  LaneMask nan[kChains] = {};
  for (Lanes& lanes : greatest) lanes = Lanes{kLowest, kLowest, kLowest, kLowest};
  size_t i = 0;
  for (; i + kChains * kLanes <= size; i += kChains * kLanes) {
    for (size_t chain = 0; chain < kChains; ++chain) {
      const Lanes lanes = *reinterpret_cast<const UnalignedLanes*>(values + i + chain * kLanes);
      const LaneMask above = lanes > greatest[chain];
      nan[chain] |= ~(above | (lanes <= greatest[chain]));  // neither
      greatest[chain] = above ? lanes : greatest[chain];
    }
  }
  BlockMax max;
  for (; i < size; ++i) {
    max.value = std::max(max.value, values[i]);
    max.has_nan |= std::isnan(values[i]);
  }
  for (size_t chain = 0; chain < kChains; ++chain) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      max.value = std::max(max.value, greatest[chain][lane]);
      max.has_nan |= nan[chain][lane] != 0;
    }
  }
  return max;
}

}  // namespace

RowMax FindRowMax(absl::Span<const float> row) {
  // Only the block that holds the maximum is searched for its place.
  constexpr size_t kBlock = 256;
  RowMax max;
  size_t best_begin = 0;
  for (size_t begin = 0; begin < row.size(); begin += kBlock) {
    const BlockMax block = FindBlockMax(row.data() + begin, std::min(kBlock, row.size() - begin));
    max.has_nan |= block.has_nan;
    if (block.value > max.value) {
      max.value = block.value;
      best_begin = begin;
    }
  }
  if (max.value == kLowest) return max;
  const auto first = row.begin() + static_cast<ptrdiff_t>(best_begin);
  max.index = static_cast<size_t>(std::find(first, row.end(), max.value) - row.begin());
  return max;
}

}  // namespace sluice
