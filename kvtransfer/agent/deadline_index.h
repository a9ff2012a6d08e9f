// The earliest deadline among many, each updated after every step of its owner. One thread.
#pragma once

#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"

namespace sluice {

template <typename Key>
class DeadlineIndex {
 public:
  // Infinite removes the key.
  void Set(const Key& key, absl::Time deadline) {
    auto [it, inserted] = deadlines_.try_emplace(key, absl::InfiniteFuture());
    if (!inserted && it->second == deadline) return;
    if (!inserted) order_.erase({it->second, key});
    if (deadline == absl::InfiniteFuture()) {
      deadlines_.erase(it);
      return;
    }
    it->second = deadline;
    order_.insert({deadline, key});
  }

  std::vector<Key> Due(absl::Time now) const {
    std::vector<Key> due;
    for (const auto& [deadline, key] : order_) {
      if (deadline > now) break;
      due.push_back(key);
    }
    return due;
  }

  absl::Time Earliest() const {
    return order_.empty() ? absl::InfiniteFuture() : order_.begin()->first;
  }

 private:
  absl::flat_hash_map<Key, absl::Time> deadlines_;
  std::set<std::pair<absl::Time, Key>> order_;
};

}  // namespace sluice
