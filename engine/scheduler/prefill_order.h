// Which prompt goes first: the one with the least work left, so that short prompts do not stand
// behind a long one, with ageing, so that the long one is not overtaken forever. Pure functions.
//
// A step of waiting is worth `ageing_tokens_per_step` tokens of work. Since everybody ages alike,
// the order of two prompts does not depend on the present step, only on when they came:
//   score = tokens left + arrival step * ageing_tokens_per_step        (smaller goes first)
// A prompt of n tokens is overtaken only by those that come in the next n / ageing_tokens_per_step
// steps. An answer that goes on after its worker was lost counts as older than it is here: its
// client waits in the middle of a sentence.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/scheduler/sequence.h"

namespace sluice {

// At this rate a prompt that needs k whole steps by itself is overtaken by newcomers for 16 k
// steps.
inline int64_t AgeingTokensPerStep(int max_num_batched_tokens) {
  return std::max<int64_t>(1, max_num_batched_tokens / 16);
}

constexpr int64_t kResumedHeadStartSteps = 64;  // four whole steps' worth of tokens

inline int64_t PrefillScore(const Sequence& sequence, int64_t num_tokens_left,
                            int64_t ageing_tokens_per_step) {
  const bool resumes = sequence.num_input_tokens > sequence.num_prompt_tokens;
  const int64_t since = sequence.arrival_step - (resumes ? kResumedHeadStartSteps : 0);
  return num_tokens_left + since * ageing_tokens_per_step;
}

// Orders by score, then by arrival: a strict total order.
struct GoesBefore {
  bool operator()(const Sequence* a, const Sequence* b) const {
    if (a->score != b->score) return a->score < b->score;
    return a->arrival < b->arrival;
  }
};

}  // namespace sluice
