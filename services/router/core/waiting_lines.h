// The admitted requests that wait until something is there, in the order in which they may try
// again: first those whose clients have tokens already, then by how long they have waited. Owned by
// RouterCore; not thread-safe.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace sluice::router {

// What would let a request go on before its timer.
enum class WaitsFor {
  kTime,  // nothing, or a place of the retry budget
  kRole,  // a worker of a role that has none
  kRoom,  // room at a decode worker: see RouterCore::NoteRoom
};

class WaitingLines {
 public:
  // Takes the request's place, leaves it, or keeps the one it has. `since` is when it began to
  // wait.
  void Place(RequestId id, WaitsFor what, bool has_begun, absl::Time since) {
    if (what == WaitsFor::kTime && places_.empty()) return;  // as nearly always
    const auto it = places_.find(id);
    if ((it == places_.end() ? WaitsFor::kTime : it->second.first) == what) return;
    if (it != places_.end()) {
      LineFor(it->second.first).erase(it->second.second);
      places_.erase(it);
    }
    if (what == WaitsFor::kTime) return;
    const Key key{!has_begun, since, id};
    LineFor(what).insert(key);
    places_.emplace(id, std::make_pair(what, key));
  }

  bool is_role_line_empty() const { return role_line_.empty(); }
  std::vector<RequestId> RoleLine() const {
    std::vector<RequestId> ids;
    ids.reserve(role_line_.size());
    for (const Key& key : role_line_) ids.push_back(std::get<RequestId>(key));
    return ids;
  }
  // The first `max` of them.
  std::vector<RequestId> FirstForRoom(int max) const {
    std::vector<RequestId> ids;
    for (const Key& key : room_line_) {
      if (max-- <= 0) break;
      ids.push_back(std::get<RequestId>(key));
    }
    return ids;
  }

 private:
  using Key = std::tuple<bool, absl::Time, RequestId>;  // has not begun, since, who

  absl::btree_set<Key>& LineFor(WaitsFor what) {
    return what == WaitsFor::kRole ? role_line_ : room_line_;
  }

  absl::btree_set<Key> role_line_, room_line_;
  absl::flat_hash_map<RequestId, std::pair<WaitsFor, Key>> places_;
};

}  // namespace sluice::router
