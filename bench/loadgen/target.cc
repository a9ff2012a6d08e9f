#include "bench/loadgen/target.h"

namespace sluice::loadgen {

void CountEvent(absl::Time now, bool has_text, bool is_end, RequestRecord* record) {
  const bool is_first = record->first_token == absl::InfiniteFuture();
  if (is_end && !has_text && !is_first) return;
  if (is_first) {
    record->first_token = now;
  } else {
    record->gaps.push_back(now - record->last_token);
  }
  record->last_token = now;
}

}  // namespace sluice::loadgen
