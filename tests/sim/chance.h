// Seeded chance for simulations. The same seed gives the same draws on every platform, which
// <random>'s distributions do not promise.
#pragma once

#include <cstdint>
#include <random>

#include "absl/time/time.h"

namespace sluice::testing {

class Chance {
 public:
  explicit Chance(uint64_t seed) : random_(seed * 0x9e3779b97f4a7c15u + 1) {}

  uint64_t Bits() { return random_(); }
  // In [low, high].
  int Pick(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  double Fraction() { return static_cast<double>(random_() >> 11) * 0x1.0p-53; }  // [0, 1)
  bool Once(double probability) { return Fraction() < probability; }
  absl::Duration UpTo(absl::Duration max) { return max * (Pick(0, 1000000) / 1e6); }

 private:
  std::mt19937_64 random_;
};

}  // namespace sluice::testing
