// What was broken when, so that an error can be held against its cause. Times are the simulation's.
#pragma once

#include <algorithm>
#include <vector>

#include "absl/time/time.h"

namespace sluice::testing {

class FaultHistory {
 public:
  // From `begin` to `end`, the worker could be lost to routers or to its peers.
  void DisturbWorker(int worker, absl::Time begin, absl::Time end) {
    workers_.push_back({worker, begin, end});
  }
  // The router could refuse or misjudge: it had just started, was stopped, or its clock jumped.
  void DisturbRouter(int router, absl::Time begin, absl::Time end) {
    routers_.push_back({router, begin, end});
  }
  // KV transfers could fail.
  void DisturbTransfers(absl::Time begin, absl::Time end) { transfers_.push_back({0, begin, end}); }

  int NumWorkerFaults(absl::Time begin, absl::Time end) const {
    return static_cast<int>(std::count_if(workers_.begin(), workers_.end(),
                                          [&](const Period& p) { return p.Meets(begin, end); }));
  }
  // Each of the workers was disturbed at some time within [begin, end].
  bool AllDisturbed(const std::vector<int>& workers, absl::Time begin, absl::Time end) const {
    return std::all_of(workers.begin(), workers.end(), [&](int worker) {
      return std::any_of(workers_.begin(), workers_.end(),
                         [&](const Period& p) { return p.who == worker && p.Meets(begin, end); });
    });
  }
  bool RouterDisturbed(int router, absl::Time begin, absl::Time end) const {
    return std::any_of(routers_.begin(), routers_.end(),
                       [&](const Period& p) { return p.who == router && p.Meets(begin, end); });
  }
  bool TransfersDisturbed(absl::Time begin, absl::Time end) const {
    return std::any_of(transfers_.begin(), transfers_.end(),
                       [&](const Period& p) { return p.Meets(begin, end); });
  }
  bool Calm(absl::Time begin, absl::Time end) const {
    return NumWorkerFaults(begin, end) == 0 && !TransfersDisturbed(begin, end) &&
           std::none_of(routers_.begin(), routers_.end(),
                        [&](const Period& p) { return p.Meets(begin, end); });
  }

 private:
  struct Period {
    int who = 0;
    absl::Time begin, end;
    bool Meets(absl::Time from, absl::Time to) const { return begin <= to && end >= from; }
  };
  std::vector<Period> workers_, routers_, transfers_;
};

}  // namespace sluice::testing
