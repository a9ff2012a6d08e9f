// exp() of a row of logits and its sum, the same bits on every processor and library version: plain
// arithmetic in a fixed order that compilers turn into vectors. Pure functions, any thread.
#pragma once

#include <bit>
#include <cstdint>

#include "absl/types/span.h"

namespace sluice {

// exp(x) for x <= 0, within 2 ulp; 0 below -87, where the result would leave the normal floats.
// exp(0) is exactly 1, and the function is monotonic where it matters for thresholds (min_p).
inline float DeterministicExp(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // 10 bits, so that n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  const float clamped = x < -87.0f ? -87.0f : x;  // also -inf
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = (p * (r * r) + r) + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  const float power = std::bit_cast<float>((exponent + 127) << 23);
  return x < -87.0f ? 0.0f : mantissa * power;
}

// weights[i] = exp((x[i] - max)); returns their sum: eight interleaved partial sums, added in
// order. `weights` may be null. REQUIRES: x[i] <= max, max finite.
double ExpWeights(absl::Span<const float> x, float max, float* weights);

}  // namespace sluice
