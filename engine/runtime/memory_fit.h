// What a model takes besides its KV cache, and whether the weights fit the memory that is left.
// Asked before they are read: afterwards the kernel would end the process without a word. Pure
// functions; any thread.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "engine/scheduler/scheduler_options.h"
#include "modelspec/kv_layout.h"
#include "modelspec/model_spec.h"

namespace sluice {

// What one process keeps at least: packing pads some matrices and holds the router in f32.
int64_t WeightBytes(const ModelSpec& spec, DType dtype);

// What a step of max_num_batched_tokens holds between its kernels, and the logits of max_num_seqs
// sequences: taken by the first step that is so large, and kept. `max_model_len`: of the model if
// the scheduler's is 0.
int64_t StepBytes(const ModelSpec& spec, DType dtype, const SchedulerOptions& scheduler,
                  int num_threads);

// RESOURCE_EXHAUSTED says how much is wanted and how much there is.
absl::Status CheckWeightsFit(int64_t weight_bytes, int64_t available_bytes);

}  // namespace sluice
