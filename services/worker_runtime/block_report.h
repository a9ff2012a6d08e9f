// Who holds a worker's KV blocks, for people: what `sluice status --blocks` shows and the admin
// port's /blocks answers. Made on the engine thread, read by any.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "services/worker_runtime/request_handler.h"

namespace sluice::worker {

// The largest holders that a report names; it counts all of them.
inline constexpr int kMaxReportedHolders = 128;

struct BlockHolder {
  SequenceKey key;
  std::string state;   // prefilling, decoding, sending, receiving, quarantined, lent
  int num_blocks = 0;  // a block of a shared prefix counts for each of its holders
  // Null when neither a request nor a prefix on its way accounts for the blocks: a leak, to be
  // reported as a bug.
  std::optional<RequestTimes> times;
};

struct BlockReport {
  absl::Time taken = absl::InfinitePast();
  BlockCounts counts;
  int num_holders = 0;
  std::vector<BlockHolder> holders;  // most blocks first, then by key
};

// REQUIRES: the engine thread.
BlockReport MakeBlockReport(const Engine& engine, const RequestHandler& handler, absl::Time now);

struct BlockReportContext {
  std::string worker_id;
  std::string role;
  absl::Duration lease;  // of transfers: one without progress ends after this
};
// One JSON object; docs/metrics.md lists its fields.
std::string BlockReportJson(const BlockReport& report, const BlockReportContext& context,
                            absl::Time now);

}  // namespace sluice::worker
