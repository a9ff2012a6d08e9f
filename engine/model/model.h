// The forward pass as the engine's runtime sees it. Called by the engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "modelspec/model_spec.h"

namespace sluice {

// Consecutive tokens of one sequence in one step: a prefill chunk, or one token of a decode.
struct SequenceSlice {
  absl::Span<const TokenId> tokens;  // [num_tokens]
  int start_position = 0;            // position of tokens[0]; everything before is in the cache
  absl::Span<const BlockId> block_table;  // covers positions [0, start_position + num_tokens)
  // Logits are computed for the last `num_logit_rows` tokens (0: a chunk in the middle of a
  // prompt).
  int num_logit_rows = 0;
};

class Model {
 public:
  virtual ~Model() = default;

  // Runs all slices as one batch, writes their KV into the blocks, and fills `logits`
  // [sum of num_logit_rows, vocab_size] in slice order, fp32.
  // Batch invariance: a row of logits, and every KV byte written, depends only on that sequence's
  // tokens, never on the other slices, the chunking, or which blocks are used.
  virtual void Forward(absl::Span<const SequenceSlice> slices, absl::Span<float> logits) = 0;

  // Lends the threads that compute, between two passes: fn(task, worker) for each task in
  // [0, num_tasks), 0 <= worker < num_workers(); returns when all are done. Which worker ran a task
  // must not matter. The default: one worker, the caller.
  virtual int num_workers() const { return 1; }
  virtual void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn) {
    for (int task = 0; task < num_tasks; ++task) fn(task, 0);
  }

  virtual const ModelSpec& spec() const = 0;
};

}  // namespace sluice
