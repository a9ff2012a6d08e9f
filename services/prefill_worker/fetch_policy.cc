#include "services/prefill_worker/fetch_policy.h"

#include <algorithm>

#include "common/block_hash.h"

namespace sluice::worker {
namespace {

// One block is computed in one step, beside other prompts; a fetch has four messages to exchange.
constexpr int kMinTokens = 2 * kBlockTokens;
// Of a fetch that moves nothing: both engine threads finish their step before they look.
constexpr double kSetupSeconds = 0.002;
// Networks and neighbours change.
constexpr absl::Duration kMeasureLifetime = absl::Seconds(30);
// While nothing was computed yet.
constexpr int kAllowanceInPatiences = 5;

}  // namespace

void FetchPolicy::Computed(int num_tokens, absl::Duration busy) {
  if (num_tokens > 0) computed_.Add(num_tokens, busy);
}

void FetchPolicy::Fetched(int num_tokens, absl::Duration took, absl::Time now) {
  if (now - last_fetch_ > kMeasureLifetime) fetched_ = RateMeter();
  last_fetch_ = now;
  fetched_.Add(num_tokens, took);
}

bool FetchPolicy::Worthwhile(int num_tokens, absl::Time now) const {
  if (num_tokens < kMinTokens) return false;
  const double compute_rate = computed_.TokensPerSecond();
  if (compute_rate <= 0 || now - last_fetch_ > kMeasureLifetime) return true;
  const double fetch_rate = fetched_.TokensPerSecond();
  if (fetch_rate <= 0) return false;  // all that was tried lately came to nothing
  return kSetupSeconds + num_tokens / fetch_rate < num_tokens / compute_rate;
}

absl::Duration FetchPolicy::Allowance(int num_tokens, absl::Duration patience) const {
  const double compute_rate = computed_.TokensPerSecond();
  if (compute_rate <= 0) return kAllowanceInPatiences * patience;
  return std::max(patience, absl::Seconds(num_tokens / compute_rate));
}

}  // namespace sluice::worker
