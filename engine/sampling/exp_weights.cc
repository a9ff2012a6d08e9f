#include "engine/sampling/exp_weights.h"

#include <algorithm>
#include <cstddef>

namespace sluice {

double ExpWeights(absl::Span<const float> x, float max, float* weights) {
  constexpr size_t kLanes = 8;
  constexpr size_t kChunk = 512;
  float chunk[kChunk];
  double lanes[kLanes] = {};
  for (size_t begin = 0; begin < x.size(); begin += kChunk) {
    const size_t size = std::min(kChunk, x.size() - begin);
    for (size_t i = 0; i < size; ++i) chunk[i] = DeterministicExp(x[begin + i] - max);
    if (weights != nullptr) std::copy_n(chunk, size, weights + begin);
    size_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += chunk[i + lane];
    }
    for (size_t lane = 0; i < size; ++i, ++lane) lanes[lane] += chunk[i];
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace sluice
