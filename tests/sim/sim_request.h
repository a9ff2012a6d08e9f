// One request of the cluster simulation as its client sees it, held against the answer of an
// undisturbed run. Values; no threads.
#pragma once

#include <optional>
#include <string>

#include "services/router/core/messages.h"
#include "tests/sim/fault_history.h"
#include "tests/support/fake_engine.h"

namespace sluice::testing {

struct SimRequest {
  router::GenerationSpec spec;  // its deadline is set when it is submitted
  std::optional<absl::Duration> timeout;
  Answer expected;
  int router = 0;
  bool wanted = false;  // in the script of this run
  absl::Time submitted_at = absl::InfiniteFuture();
  size_t num_emitted = 0;
  bool cancelled = false;
  bool ended = false;  // has its answer, or its router is gone

  bool submitted() const { return submitted_at != absl::InfiniteFuture(); }
};

// Takes the tokens into account. "" while they are what they must be.
std::string CheckTokens(const router::EmitTokens& emitted, SimRequest* request);

// Who could have been needed for an answer.
struct WorkersByRole {
  std::vector<int> prefill;  // those that compute prompts, role `both` among them
  std::vector<int> decode;
};

// "" when this is how the request may end, `now` being the end.
std::string CheckEnd(const router::GenerationResult& result, const SimRequest& request,
                     const FaultHistory& history, const WorkersByRole& workers, absl::Time now);

}  // namespace sluice::testing
