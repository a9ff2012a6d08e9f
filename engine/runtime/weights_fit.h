// Whether a model's weights fit the memory that is left. Asked before they are read: afterwards the
// kernel would end the process without a word. Pure functions; any thread.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "modelspec/kv_layout.h"
#include "modelspec/model_spec.h"

namespace sluice {

// What one process keeps at least: packing pads some matrices and holds the router in f32.
int64_t WeightBytes(const ModelSpec& spec, DType dtype);

// RESOURCE_EXHAUSTED says how much is wanted and how much there is.
absl::Status CheckWeightsFit(int64_t weight_bytes, int64_t available_bytes);

}  // namespace sluice
