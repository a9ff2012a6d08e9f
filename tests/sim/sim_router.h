// One life of a router process in the cluster simulation: the real router core, driven as
// services/router/fleet/dispatcher_thread.cc drives it, on virtual time. One thread.
#pragma once

#include <deque>
#include <functional>

#include "services/router/core/router_core.h"
#include "tests/sim/node_clock.h"

namespace sluice::testing {

class SimRouter {
 public:
  using CarryOut = std::function<void(router::Action)>;

  // `network` is the reference of time.
  SimRouter(const router::CoreOptions& options, const Clock* network, CarryOut carry_out);

  // Into the mailbox, as a socket and a thread would have it; also while the process is paused.
  void Deliver(router::Event event) { mailbox_.push_back(std::move(event)); }

  // When Run has something to do next, on the network's clock.
  absl::Time WakeTime() const;
  // One round of the dispatcher's loop: mail first, then timers.
  void Run();

  // "" when no request is held, and none is counted as a worker's load.
  std::string CheckIdle() const;

  const router::RouterCore& core() const { return core_; }
  NodeClock& clock() { return clock_; }
  bool paused = false;

 private:
  void Step(router::Event event, absl::Time now);

  const Clock* const network_;
  const CarryOut carry_out_;
  const absl::Duration stall_;  // a longer gap between two rounds was a pause of our own
  NodeClock clock_;
  router::RouterCore core_;
  std::deque<router::Event> mailbox_;
  absl::Time last_run_;
};

}  // namespace sluice::testing
