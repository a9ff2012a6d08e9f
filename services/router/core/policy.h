// Routing policies: pure functions of a ClusterView and a request, the same answer for the same
// input, ties broken by worker_id. Any thread.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "services/router/core/cluster_view.h"

namespace sluice::router {

struct RouteQuery {
  int num_tokens = 0;  // prompt and journal: what prefill has to cover
  // Workers not to choose: they answered Busy, or failed this request.
  absl::Span<const SessionId> excluded;
  // Decode worker of the attempt before this one: it keeps the KV it was sent.
  std::optional<SessionId> kv_holder;
  // Set: no other decode worker is asked.
  std::optional<SessionId> only_decode = std::nullopt;
};

// Blocks at the front of the request's chain in a worker's prefix cache.
using PrefixMatch = std::function<int(const WorkerView&)>;

enum class NoRoute {
  kNone,
  kNoDecode,     // no ready decode worker (and none of role `both`)
  kNoPrefill,    // no ready prefill worker (and none of role `both`)
  kTooLong,      // no ready worker, or pair, whose max_model_len it fits
  kAllExcluded,  // there are workers, but each was excluded, or has only suspect links left
};

struct DecodeChoice {
  const WorkerView* worker = nullptr;  // role decode, or both: run there without a handoff
  NoRoute none = NoRoute::kNone;       // why worker is null
};

// The worker to decode on. A decode worker with a prefill worker of the same fingerprint, both long
// enough, is preferred; a worker of role `both` is the fallback when there is no such pair. Among
// equals: those that are not late first, then those that a prefill worker reaches without a suspect
// link, then those with enough blocks, then who holds KV of the request, then the least loaded
// (requests per max_num_seqs), then most available blocks, then worker_id. Over a suspect link only
// if there is no other way, not even through workers that are excluded now.
DecodeChoice ChooseDecodeWorker(const ClusterView& view, const RouteQuery& query);

// Who the KV goes to.
struct DecodePeer {
  SessionId session;
  std::string fingerprint;
};

struct PrefillChoice {
  const WorkerView* worker = nullptr;
  NoRoute none = NoRoute::kNone;  // why worker is null: kNoPrefill, kTooLong or kAllExcluded
  int matched_blocks = 0;
  double estimated_seconds = 0;  // until the prompt is computed
};

// The prefill worker of the decode worker's fingerprint with the earliest finish: its queue plus
// the tokens of this request it has not cached, over its speed. Late ones come last, before them
// those with a suspect link to the decode worker.
// `default_tokens_per_second` stands in for a speed not reported yet.
PrefillChoice ChoosePrefillWorker(const ClusterView& view, const RouteQuery& query,
                                  const DecodePeer& decode, const PrefixMatch& match,
                                  double default_tokens_per_second);

// "" when a request could be routed now, else which role is missing, for people.
std::string MissingRole(const ClusterView& view);
// The same for metrics; kNone when nothing is missing.
RejectReason MissingRoleReason(const ClusterView& view);

}  // namespace sluice::router
