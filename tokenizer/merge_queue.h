// The possible merges of a piece of text, best first: lowest rank, leftmost on ties. Two queues
// with one interface: a heap for ordinary pieces, and one for pieces of megabytes (a letter
// repeated, a genome), where a heap of millions of entries misses the cache at each step. Owner:
// Bpe::Scratch; not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/btree_map.h"
#include "common/ids.h"

namespace sluice {

// To merge the symbol at `position`, which was `left`, with its next, which was `right`.
struct MergeCandidate {
  int32_t rank;
  int32_t position;
  TokenId left;
  TokenId right;
};

// O(log n) a candidate. Inline: an ordinary piece has a handful, and a text has many pieces.
class HeapMergeQueue {
 public:
  void Clear() { heap_.clear(); }
  // The candidates of the text itself, from left to right; then Order.
  void Append(const MergeCandidate& candidate) { heap_.push_back(candidate); }
  void Order() { std::make_heap(heap_.begin(), heap_.end(), IsAfter()); }
  void Push(const MergeCandidate& candidate) {
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), IsAfter());
  }
  bool empty() const { return heap_.empty(); }
  // REQUIRES: !empty().
  MergeCandidate Pop() {
    std::pop_heap(heap_.begin(), heap_.end(), IsAfter());
    const MergeCandidate best = heap_.back();
    heap_.pop_back();
    return best;
  }

 private:
  struct IsAfter {
    bool operator()(const MergeCandidate& a, const MergeCandidate& b) const {
      return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
    }
  };
  std::vector<MergeCandidate> heap_;
};

// Positions by rank. Merging from left to right brings the candidates of a rank nearly in order, so
// most are only appended: close to O(1) a candidate, whatever the length. Keeps no memory when
// cleared.
class RankMergeQueue {
 public:
  void Clear() { ranks_.clear(); }
  void Append(const MergeCandidate& candidate) { Push(candidate); }
  void Order() {}
  void Push(const MergeCandidate& candidate);
  bool empty() const { return ranks_.empty(); }
  // REQUIRES: !empty().
  MergeCandidate Pop();

 private:
  struct Positions {
    TokenId left;
    TokenId right;
    std::vector<int32_t> in_order;  // ascending, from `next` on
    size_t next = 0;
    std::vector<int32_t> late;  // a heap: those that came out of order
  };
  absl::btree_map<int32_t, Positions> ranks_;  // none empty
};

}  // namespace sluice
