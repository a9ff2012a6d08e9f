// Which blocks of a transfer have arrived. Completion is that every cell (block) was verified
// exactly once, never a count of messages: a counter is fooled by duplicates, a bitmap is not.
// Owned by one state machine; no thread safety.
//
// Invariant: a cell is empty, claimed (a receive into it is pending) or verified; claimed and
// verified cells can not be claimed again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice::handoff {

class Coverage {
 public:
  explicit Coverage(size_t num_cells) : claimed_(num_cells), verified_(num_cells) {}

  // Claims cells [first, first + count); false, changing nothing, if one is not empty.
  bool Claim(size_t first, size_t count);
  // Claimed cells become empty again.
  void Release(size_t first, size_t count);
  // Claimed cells become verified.
  void Verify(size_t first, size_t count);

  size_t num_cells() const { return verified_.size(); }
  bool complete() const { return verified_prefix_ == verified_.size(); }
  // Number of verified cells before the first one that is not.
  size_t verified_prefix() const { return verified_prefix_; }

 private:
  std::vector<bool> claimed_;  // claimed or verified
  std::vector<bool> verified_;
  size_t verified_prefix_ = 0;  // only grows, so that asking is cheap
};

}  // namespace sluice::handoff
