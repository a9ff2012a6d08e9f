// Which ways that KV takes, from a prefill to a decode worker, are suspect: a transfer failed there
// a moment ago and none has arrived since. Both workers may be in the best of health, and the
// prefill worker, whose work ends at once, would look like the least loaded. Owned by the core,
// driven with its clock.
#pragma once

#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"
#include "services/router/core/cluster_view.h"

namespace sluice::router {

class KvLinks {
 public:
  // `suspicion`: for how long a failure is remembered.
  explicit KvLinks(absl::Duration suspicion) : suspicion_(suspicion) {}

  void OnFailed(KvLink link, absl::Time now) {
    until_[{link.prefill, link.decode}] = now + suspicion_;
  }
  void OnArrived(KvLink link) { until_.erase({link.prefill, link.decode}); }
  // The worker has left.
  void Forget(SessionId worker) {
    absl::erase_if(until_, [worker](const auto& entry) {
      return entry.first.first == worker || entry.first.second == worker;
    });
  }
  std::vector<KvLink> Suspect(absl::Time now) const {
    std::vector<KvLink> links;
    for (const auto& [link, until] : until_) {
      if (now < until) links.push_back({link.first, link.second});
    }
    return links;
  }

 private:
  const absl::Duration suspicion_;
  absl::btree_map<std::pair<SessionId, SessionId>, absl::Time> until_;  // prefill, decode
};

}  // namespace sluice::router
