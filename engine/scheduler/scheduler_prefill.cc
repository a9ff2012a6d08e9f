// The prefill half of a plan: who gets how many of a step's tokens.
#include <algorithm>

#include "common/check.h"
#include "engine/scheduler/scheduler.h"

namespace sluice {

void Scheduler::PlanPrefills() {
  bool short_prompts_wait = num_short_waiting_ > 0;
  for (Sequence* sequence : running_) {
    sequence->num_planned = 0;
    if (sequence->phase == SequencePhase::kPrefilling && !IsLong(*sequence)) {
      short_prompts_wait = true;
    }
  }
  PrefillBudget budget{
      .work = StepWork(options_.attention_parity_position, options_.max_num_batched_tokens)};
  budget.tokens = options_.max_num_batched_tokens - plan_.num_decode_tokens;
  budget.long_prompt_tokens = short_prompts_wait ? budget.tokens / 2 : budget.tokens;
  PlanPrefillRound(&budget);
  // What the short prompts left over.
  budget.long_prompt_tokens = budget.tokens;
  if (short_prompts_wait) PlanPrefillRound(&budget);

  for (Sequence* sequence : running_) {
    if (sequence->phase != SequencePhase::kPrefilling || sequence->num_planned == 0) continue;
    SLUICE_CHECK(sequence->num_planned > 0);
    plan_.slices.push_back({sequence, sequence->num_computed, sequence->num_planned,
                            sequence->num_planned == sequence->num_uncomputed()});
    plan_.num_prefill_tokens += sequence->num_planned;
  }
}

void Scheduler::PlanPrefillRound(PrefillBudget* budget) {
  prefill_candidates_.clear();
  for (Sequence* sequence : running_) {
    if (sequence->phase != SequencePhase::kPrefilling) continue;
    sequence->score = PrefillScore(*sequence, sequence->num_uncomputed(), ageing_tokens_per_step_);
    prefill_candidates_.push_back(sequence);
  }
  std::sort(prefill_candidates_.begin(), prefill_candidates_.end(), GoesBefore());

  // Merges the admitted prompts with the waiting queue, both in order.
  auto next_admitted = prefill_candidates_.begin();
  auto next_waiting = waiting_.begin();
  while (budget->tokens > 0) {
    Sequence* admitted = next_admitted == prefill_candidates_.end() ? nullptr : *next_admitted;
    Sequence* waiting =
        budget->admission_open && next_waiting != waiting_.end() ? *next_waiting : nullptr;
    if (admitted == nullptr && waiting == nullptr) return;
    const bool take_admitted =
        admitted != nullptr && (waiting == nullptr || GoesBefore()(admitted, waiting));
    Sequence* sequence = take_admitted ? admitted : waiting;
    if (take_admitted) {
      ++next_admitted;
    } else if (budget->AllowanceOf(IsLong(*sequence)) == 0) {
      ++next_waiting;
      continue;
    } else {
      // Out of the queue first: admission changes what its place is computed from.
      const bool was_long = IsLong(*sequence);
      if (!Admit(sequence)) {
        budget->admission_open = false;
        continue;
      }
      if (!was_long) --num_short_waiting_;
      next_waiting = waiting_.erase(next_waiting);
    }
    // Admission may have found less of the prompt cached than it was queued with: one that came as
    // short can be long now, and may have to wait for the second round or the next step.
    const bool is_long = IsLong(*sequence);
    const int start = sequence->num_computed + sequence->num_planned;
    const int num_tokens = budget->work.TokensWithin(
        start,
        std::min(sequence->num_uncomputed() - sequence->num_planned, budget->AllowanceOf(is_long)));
    budget->work.Take(start, num_tokens);
    sequence->num_planned += num_tokens;
    budget->tokens -= num_tokens;
    if (is_long) budget->long_prompt_tokens -= num_tokens;
  }
}

}  // namespace sluice
