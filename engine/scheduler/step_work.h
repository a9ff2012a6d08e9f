// How long a prefill chunk takes, in tokens at the beginning of a prompt. A token at position p
// attends to p others: in long contexts that is most of its work (DeepSeek-V3 at 128k: 31 of 32
// parts), and a step of so many tokens would hold up everybody behind it for as many times longer.
// So a step is bounded in work as well, and chunks get smaller towards the end of a long prompt;
// where a prompt is cut changes no bit of its answer. Pure functions.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sluice {

// A step may take this many times what max_num_batched_tokens cost at the beginning of prompts.
constexpr int64_t kMaxStepWork = 2;
// So much of the first prompt goes on in every step.
constexpr int kMinChunkTokens = 16;

class StepWork {
 public:
  // `parity_position`: where a token's attention costs as much as all the rest of it; 0: nowhere.
  StepWork(int64_t parity_position, int max_num_batched_tokens)
      : parity_(parity_position), left_(kMaxStepWork * Of(0, 1) * max_num_batched_tokens) {}

  // The first tokens of [start, start + max_tokens) that may be computed in this step.
  int TokensWithin(int start, int max_tokens) const {
    int low = used_ ? 0 : std::min(kMinChunkTokens, max_tokens);
    for (int high = max_tokens; low < high;) {
      const int middle = low + (high - low + 1) / 2;
      if (Of(start, middle) <= left_) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
  void Take(int start, int num_tokens) {
    left_ = std::max<int64_t>(0, left_ - Of(start, num_tokens));
    used_ |= num_tokens > 0;
  }

 private:
  // In 2 * parity_position parts of a token's work; 1 without one.
  int64_t Of(int64_t start, int64_t num_tokens) const {
    return parity_ == 0 ? num_tokens : num_tokens * (2 * parity_ + 2 * start + num_tokens - 1);
  }

  int64_t parity_;
  int64_t left_;
  bool used_ = false;
};

}  // namespace sluice
