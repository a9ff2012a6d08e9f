// Finds where a ranking of tokens (larger value first, lower index on ties) has gathered a given
// mass, without sorting them: a histogram over the distance from the best value tells in which
// narrow band the cut lies, and only that band is sorted. Serves top_k (each token weighs 1) and
// top_p (its probability). Owner: one sampler; not thread-safe (scratch space).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace sluice {

class RankCut {
 public:
  // The value and index of the last token that is in.
  struct Last {
    float value = 0;
    size_t index = 0;
    bool Includes(float other_value, size_t other_index) const {
      return other_value > value || (other_value == value && other_index <= index);
    }
  };

  // The smallest leading set with mass >= fraction * (mass of all), 0 < fraction <= 1, or, with an
  // absolute target > 0, >= target (everybody when all together have less).
  // `values` are <= 0; those of -inf have no rank. mass(i) >= 0 is asked for the others only.
  template <typename Mass>
  Last FindFraction(absl::Span<const float> values, const Mass& mass, double fraction) {
    double total = Fill(values, mass);
    return Find(values, mass, fraction * total);
  }
  template <typename Mass>
  Last FindMass(absl::Span<const float> values, const Mass& mass, double target) {
    Fill(values, mass);
    return Find(values, mass, target);
  }

 private:
  // Monotonic: a larger value never has a larger band. Bands are 1/64 wide, which at probabilities
  // means 1.6 %; what is e^-32 below the best shares the last one.
  static constexpr size_t kNumBands = 2048;
  static size_t Band(float value) {
    const float band = value * -64.0f;
    return band < static_cast<float>(kNumBands - 1) ? static_cast<size_t>(band) : kNumBands - 1;
  }
  static bool Ranked(float value) { return value > -std::numeric_limits<float>::infinity(); }

  template <typename Mass>
  double Fill(absl::Span<const float> values, const Mass& mass) {
    bands_.fill(0);
    for (size_t i = 0; i < values.size(); ++i) {
      if (Ranked(values[i])) bands_[Band(values[i])] += mass(i);
    }
    double total = 0;
    for (const double band : bands_) total += band;
    return total;
  }

  template <typename Mass>
  Last Find(absl::Span<const float> values, const Mass& mass, double target) {
    double sum = 0;
    size_t cut = 0;
    while (cut < kNumBands && sum + bands_[cut] < target) sum += bands_[cut++];
    if (cut == kNumBands) {
      return {-std::numeric_limits<float>::infinity(), std::numeric_limits<size_t>::max()};
    }

    in_band_.clear();
    for (size_t i = 0; i < values.size(); ++i) {
      if (Ranked(values[i]) && Band(values[i]) == cut) in_band_.emplace_back(values[i], i);
    }
    std::sort(in_band_.begin(), in_band_.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    for (const auto& [value, index] : in_band_) {
      sum += mass(index);
      if (sum >= target) return {value, index};
    }
    // In this order the band's mass may round to a little less than in the histogram.
    return {in_band_.back().first, in_band_.back().second};
  }

  std::array<double, kNumBands> bands_;
  std::vector<std::pair<float, size_t>> in_band_;
};

}  // namespace sluice
