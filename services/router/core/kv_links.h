// Which ways that KV takes, from a prefill to a decode worker, are suspect: a transfer failed there
// a moment ago and none has arrived since. Both workers may be in the best of health, and the
// prefill worker, whose work ends at once, would look like the least loaded. Owned by the core,
// driven with its clock.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"
#include "services/router/core/cluster_view.h"

namespace sluice::router {

class KvLinks {
 public:
  // `suspicion`: for how long a first failure is remembered; one that comes after that, with
  // nothing arrived in between, twice as long as the one before, up to kLongest.
  explicit KvLinks(absl::Duration suspicion) : suspicion_(suspicion) {}
  static constexpr absl::Duration kLongest = absl::Seconds(8);  // well below capacity_timeout

  void OnFailed(KvLink link, absl::Time now) {
    Suspicion& suspicion = links_[{link.prefill, link.decode}];
    if (now < suspicion.until) return;
    suspicion.length = std::clamp(2 * suspicion.length, suspicion_, kLongest);
    suspicion.until = now + suspicion.length;
  }
  void OnArrived(KvLink link) { links_.erase({link.prefill, link.decode}); }
  // The worker has left.
  void Forget(SessionId worker) {
    absl::erase_if(links_, [worker](const auto& entry) {
      return entry.first.first == worker || entry.first.second == worker;
    });
  }
  // In order.
  std::vector<KvLink> Suspect(absl::Time now) const {
    std::vector<KvLink> links;
    for (const auto& [link, suspicion] : links_) {
      if (now < suspicion.until) links.push_back({link.first, link.second});
    }
    return links;
  }

 private:
  struct Suspicion {
    absl::Time until = absl::InfinitePast();
    absl::Duration length;
  };

  const absl::Duration suspicion_;
  absl::btree_map<std::pair<SessionId, SessionId>, Suspicion> links_;  // prefill, decode
};

}  // namespace sluice::router
