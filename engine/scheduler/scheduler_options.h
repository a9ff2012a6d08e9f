// Policy of one engine's scheduler, as values. Plain data.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace sluice {

struct SchedulerOptions {
  int max_num_batched_tokens = 512;  // tokens of one step: decodes plus prefill chunks
  int max_num_seqs = 64;             // sequences in one step, reservations counted
  int max_num_waiting = 1024;        // more are refused with RESOURCE_EXHAUSTED
  int max_model_len = 0;             // prompt plus output; 0: the model's max_position_embeddings
  // Prompts longer than this may take at most half of a step's tokens while shorter ones wait.
  int long_prompt_tokens = 1024;
  // Of the model: where attention costs a prompt's token as much as all the rest (step_work.h). 0:
  // the position of a token costs nothing.
  int64_t attention_parity_position = 0;
  bool enable_prefix_cache = true;
  // A sequence is admitted only if this many tokens of its output (or max_tokens, if fewer) fit
  // beside what the others were promised. Larger: fewer preemptions; smaller: more sequences at
  // once.
  int expected_output_tokens = 256;

  // INVALID_ARGUMENT names the field.
  absl::Status Validate() const;
};

}  // namespace sluice
