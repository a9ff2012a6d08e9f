#include "tests/sim/sim_router.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::testing {
namespace {

constexpr absl::Duration kTickInterval = absl::Milliseconds(100);  // the dispatcher's

}  // namespace

SimRouter::SimRouter(const router::CoreOptions& options, const Clock* network, CarryOut carry_out)
    : network_(network),
      carry_out_(std::move(carry_out)),
      stall_(kTickInterval + options.worker_timeout / 4),
      clock_(network),
      core_(options),
      last_run_(clock_.Now()) {}

absl::Time SimRouter::WakeTime() const {
  if (paused) return absl::InfiniteFuture();
  if (!mailbox_.empty()) return network_->Now();
  return clock_.ToReference(std::min(core_.NextTimer(last_run_), last_run_ + kTickInterval));
}

void SimRouter::Run() {
  const absl::Time now = clock_.Now();
  if (now - last_run_ > stall_) Step(router::RouterResumed{}, now);
  last_run_ = now;
  for (router::Event& event : std::exchange(mailbox_, {})) Step(std::move(event), now);
  if (core_.NextTimer(now) <= now) Step(router::Tick{}, now);
}

void SimRouter::Step(router::Event event, absl::Time now) {
  for (router::Action& action : core_.Step(std::move(event), now)) carry_out_(std::move(action));
}

std::string SimRouter::CheckIdle() const {
  if (core_.num_queued() + core_.num_running() > 0) {
    return absl::StrCat(core_.num_queued(), " requests queued, ", core_.num_running(), " running");
  }
  for (const auto& [session, member] : core_.membership().members()) {
    if (member.assigned_requests != 0 || member.assigned_prefill_tokens != 0) {
      return absl::StrCat("counts ", member.assigned_requests, " requests and ",
                          member.assigned_prefill_tokens, " prompt tokens on ",
                          member.info.worker_id, ", though no request is left");
    }
  }
  return "";
}

}  // namespace sluice::testing
