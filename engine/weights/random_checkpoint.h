// Writes checkpoints of random weights: the shape and cost of a real model without its download,
// for measurements and load tests. What such a model says is noise, but every logit is finite.
// Any thread; the values depend on the seed and the tensor's name alone.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "modelspec/model_spec.h"

namespace sluice {

struct RandomCheckpointOptions {
  std::string dir;  // exists; the shards and their index are written here
  uint64_t seed = 1;
  int num_threads = 1;
  uint64_t max_shard_bytes = uint64_t{4} << 30;
  std::function<void(double fraction)> on_progress;  // may be null
};

// Bytes of the weights: bf16, but fp32 for the router's bias.
uint64_t RandomCheckpointBytes(const ModelSpec& spec);

// model-0000N-of-0000M.safetensors and model.safetensors.index.json. Norms are one, biases zero,
// matrices uniform with variance 1 / columns, so that a layer neither grows nor shrinks its input.
// RESOURCE_EXHAUSTED if the file system has no room for it; INVALID_ARGUMENT for a quantized spec.
absl::Status WriteRandomCheckpoint(const ModelSpec& spec, const RandomCheckpointOptions& options);

}  // namespace sluice
