// The attempts a worker knows: the live ones with their role's state, and a bounded memory of the
// ended ones, so that duplicates and stragglers are told from news. Owned by the engine thread.
//
// Invariants:
//  1. An attempt is live at most once; after it ended it never becomes live again.
//  2. Several attempts of one request may be live for a moment: the newest, and older ones that
//     are being torn down.
//  3. A deadline is reported by Expired once.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "services/rpc/attach_client.h"

namespace sluice::worker {

// How an arriving attempt relates to what the table knows.
enum class Arrival {
  kNew,        // newer than every known attempt of its request
  kDuplicate,  // live now
  kStale,      // ended here, or older than another attempt
};

// Record: a movable struct with `SequenceKey key`, `rpc::SessionId session`, `absl::Time deadline`.
template <typename Record>
class RequestTable {
 public:
  // Remembers the newest attempt of at least `max_remembered` ended requests.
  explicit RequestTable(size_t max_remembered = 16384) : max_remembered_(max_remembered) {}

  Arrival Classify(const SequenceKey& key) const {
    if (live_.contains(key)) return Arrival::kDuplicate;
    const auto newest = newest_.find(key.request);
    if (newest != newest_.end() && key.attempt <= newest->second) return Arrival::kStale;
    return Arrival::kNew;
  }

  // REQUIRES: Classify(record.key) == kNew. The reference is valid until Erase.
  Record& Insert(Record record) {
    const SequenceKey key = record.key;
    Remember(key);
    if (record.deadline < absl::InfiniteFuture()) deadlines_.emplace(record.deadline, key);
    auto [entry, inserted] = live_.emplace(key, std::make_unique<Record>(std::move(record)));
    return *entry->second;
  }

  // Notes an attempt that was refused at once, so that its duplicates are stale.
  void Remember(const SequenceKey& key) {
    auto [entry, inserted] = newest_.try_emplace(key.request, key.attempt);
    if (!inserted) {
      entry->second = std::max(entry->second, key.attempt);
      return;
    }
    order_.push_back(key.request);
    // Live requests bound the excess: they are put back at the end instead of being forgotten.
    for (size_t tries = order_.size(); order_.size() > max_remembered_ && tries > 0; --tries) {
      const RequestId oldest = order_.front();
      order_.pop_front();
      if (Find({oldest, newest_.at(oldest)}) != nullptr) {
        order_.push_back(oldest);
      } else {
        newest_.erase(oldest);
      }
    }
  }

  Record* Find(const SequenceKey& key) const {
    const auto entry = live_.find(key);
    return entry == live_.end() ? nullptr : entry->second.get();
  }

  // The deadline has been acted upon (or no longer matters).
  void ClearDeadline(Record& record) {
    deadlines_.erase({record.deadline, record.key});
    record.deadline = absl::InfiniteFuture();
  }

  // `record` is gone after this.
  void Erase(Record& record) {
    deadlines_.erase({record.deadline, record.key});
    live_.erase(SequenceKey(record.key));
  }

  template <typename Predicate>
  std::vector<SequenceKey> KeysWhere(Predicate predicate) const {
    std::vector<SequenceKey> keys;
    for (const auto& [key, record] : live_) {
      if (predicate(*record)) keys.push_back(key);
    }
    return keys;
  }

  std::vector<SequenceKey> Expired(absl::Time now) const {
    std::vector<SequenceKey> keys;
    for (const auto& [deadline, key] : deadlines_) {
      if (deadline > now) break;
      keys.push_back(key);
    }
    return keys;
  }

  absl::Time NextDeadline() const {
    return deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
  }

  int size() const { return static_cast<int>(live_.size()); }

 private:
  const size_t max_remembered_;
  // Ordered, so that a simulation can be replayed.
  absl::btree_map<SequenceKey, std::unique_ptr<Record>> live_;
  absl::flat_hash_map<RequestId, Attempt> newest_;
  std::deque<RequestId> order_;  // keys of newest_, oldest first
  absl::btree_set<std::pair<absl::Time, SequenceKey>> deadlines_;
};

}  // namespace sluice::worker
