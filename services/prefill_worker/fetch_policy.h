// Whether the beginning of a prompt is better fetched from a decode worker that has it than
// computed again: the one that is expected to be faster, by the rates measured here. Pure of clocks
// and threads; one owner. Rates are in tokens per second, since both ways serve the same tokens.
#pragma once

#include "absl/time/time.h"
#include "services/worker_runtime/load_board.h"

namespace sluice::worker {

class FetchPolicy {
 public:
  // `num_tokens` of prompts were computed in `busy`.
  void Computed(int num_tokens, absl::Duration busy);
  // A fetch brought `num_tokens` (perhaps none) in `took`.
  void Fetched(int num_tokens, absl::Duration took, absl::Time now);

  // Whether to fetch `num_tokens` that neither the cache has nor anybody else computes. What was
  // never measured, or long ago, speaks for fetching: that is how it comes to be measured.
  bool Worthwhile(int num_tokens, absl::Time now) const;

  // How long a fetch may take in all: as long as computing would, so that the worst fetch doubles
  // the time, but at least `patience`.
  absl::Duration Allowance(int num_tokens, absl::Duration patience) const;

 private:
  RateMeter computed_;
  RateMeter fetched_;
  absl::Time last_fetch_ = absl::InfinitePast();
};

}  // namespace sluice::worker
