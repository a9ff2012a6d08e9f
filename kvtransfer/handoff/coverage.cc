#include "kvtransfer/handoff/coverage.h"

namespace sluice::handoff {

bool Coverage::Claim(size_t first, size_t count) {
  if (first > num_cells() || count > num_cells() - first) return false;
  for (size_t cell = first; cell < first + count; ++cell) {
    if (claimed_[cell]) return false;
  }
  for (size_t cell = first; cell < first + count; ++cell) claimed_[cell] = true;
  return true;
}

void Coverage::Release(size_t first, size_t count) {
  for (size_t cell = first; cell < first + count; ++cell) claimed_[cell] = verified_[cell];
}

void Coverage::Verify(size_t first, size_t count) {
  for (size_t cell = first; cell < first + count; ++cell) verified_[cell] = claimed_[cell];
  while (verified_prefix_ < num_cells() && verified_[verified_prefix_]) ++verified_prefix_;
}

}  // namespace sluice::handoff
