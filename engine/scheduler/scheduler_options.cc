#include "engine/scheduler/scheduler_options.h"

#include "absl/strings/str_cat.h"

namespace sluice {

absl::Status SchedulerOptions::Validate() const {
  const auto invalid = [](auto&&... what) {
    return absl::InvalidArgumentError(absl::StrCat("scheduler.", what...));
  };
  if (max_num_seqs < 1) return invalid("max_num_seqs must be at least 1, not ", max_num_seqs);
  if (max_num_batched_tokens < max_num_seqs) {
    // Every running sequence takes one token of each step.
    return invalid("max_num_batched_tokens (", max_num_batched_tokens,
                   ") must be at least max_num_seqs (", max_num_seqs, ")");
  }
  if (max_num_waiting < 1) {
    return invalid("max_num_waiting must be at least 1, not ", max_num_waiting);
  }
  if (max_model_len < 0) return invalid("max_model_len must not be negative: ", max_model_len);
  if (attention_parity_position < 0) {
    return invalid("attention_parity_position must not be negative: ", attention_parity_position);
  }
  if (long_prompt_tokens < 1) {
    return invalid("long_prompt_tokens must be at least 1, not ", long_prompt_tokens);
  }
  if (expected_output_tokens < 0) {
    return invalid("expected_output_tokens must not be negative: ", expected_output_tokens);
  }
  return absl::OkStatus();
}

}  // namespace sluice
