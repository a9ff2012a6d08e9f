// The greatest of a row of logits and its place. Pure.
#pragma once

#include <cstddef>
#include <limits>

#include "absl/types/span.h"

namespace sluice {

struct RowMax {
  float value = -std::numeric_limits<float>::infinity();
  size_t index = 0;  // the first with this value; 0 if every value is NaN or minus infinity
  bool has_nan = false;
};

RowMax FindRowMax(absl::Span<const float> row);

}  // namespace sluice
