#include "services/router/core/policy.h"

#include <algorithm>
#include <tuple>

namespace sluice::router {
namespace {

bool Contains(absl::Span<const SessionId> sessions, SessionId session) {
  return std::find(sessions.begin(), sessions.end(), session) != sessions.end();
}

bool IsExcluded(const RouteQuery& query, SessionId session) {
  return Contains(query.excluded, session);
}

// One more token than there is must fit, else there is nothing to decode.
bool Fits(const WorkerView& worker, const RouteQuery& query) {
  return query.num_tokens < worker.max_model_len;
}

// Whether somebody could prefill `num_tokens` for this decode worker.
bool HasPrefillPeer(const ClusterView& view, const WorkerView& decode, int num_tokens = 0) {
  return std::any_of(view.workers.begin(), view.workers.end(), [&](const WorkerView& worker) {
    return worker.role == WorkerRole::kPrefill && worker.fingerprint == decode.fingerprint &&
           num_tokens < worker.max_model_len;
  });
}

bool IsSuspect(const ClusterView& view, SessionId prefill, SessionId decode) {
  return std::binary_search(view.suspect_links.begin(), view.suspect_links.end(),
                            KvLink{prefill, decode});
}

// Whether a prefill worker that is not excluded reaches it over a link that is not suspect.
bool IsReachable(const ClusterView& view, const WorkerView& decode, int num_tokens,
                 absl::Span<const SessionId> excluded) {
  return std::any_of(view.workers.begin(), view.workers.end(), [&](const WorkerView& worker) {
    return worker.role == WorkerRole::kPrefill && worker.fingerprint == decode.fingerprint &&
           num_tokens < worker.max_model_len && !Contains(excluded, worker.session) &&
           !IsSuspect(view, worker.session, decode.session);
  });
}

bool IsCutOff(const ClusterView& view, const WorkerView& decode, const RouteQuery& query) {
  return !view.suspect_links.empty() && decode.role == WorkerRole::kDecode &&
         !IsReachable(view, decode, query.num_tokens, query.excluded);
}

// Whether, once those that are left out now are asked again, a pair without a suspect link can take
// it.
bool HasWayAround(const ClusterView& view, const RouteQuery& query) {
  return std::any_of(view.workers.begin(), view.workers.end(), [&](const WorkerView& worker) {
    return worker.role == WorkerRole::kDecode && !worker.is_late && Fits(worker, query) &&
           IsReachable(view, worker, query.num_tokens, {});
  });
}

int64_t BlocksNeeded(const WorkerView& worker, const RouteQuery& query) {
  const int block_tokens = std::max(1, worker.kv_block_tokens);
  return (query.num_tokens + block_tokens) / block_tokens;  // room for one more token
}

struct Candidate {
  const WorkerView* worker = nullptr;
  bool cut_off = false;
};

// Smaller is better. No worker_id in it: workers are in that order already, and the first wins.
auto DecodeCost(const Candidate& candidate, const RouteQuery& query) {
  const WorkerView& worker = *candidate.worker;
  const bool lacks_blocks = worker.available_blocks < BlocksNeeded(worker, query);
  const double load = static_cast<double>(worker.requests) / std::max(1, worker.max_num_seqs);
  const bool holds_no_kv = query.kv_holder != worker.session;
  return std::make_tuple(worker.is_late, candidate.cut_off, lacks_blocks, holds_no_kv, load,
                         -worker.available_blocks);
}

Candidate BestForDecode(const ClusterView& view, const std::vector<const WorkerView*>& workers,
                        const RouteQuery& query) {
  Candidate best;
  for (const WorkerView* worker : workers) {
    const Candidate candidate = {worker, IsCutOff(view, *worker, query)};
    if (best.worker == nullptr || DecodeCost(candidate, query) < DecodeCost(best, query)) {
      best = candidate;
    }
  }
  return best;
}

}  // namespace

DecodeChoice ChooseDecodeWorker(const ClusterView& view, const RouteQuery& query) {
  std::vector<const WorkerView*> paired, both;
  bool saw_decode = false, saw_capable = false, saw_fitting = false;
  for (const WorkerView& worker : view.workers) {
    if (worker.role == WorkerRole::kPrefill) continue;
    const bool is_both = worker.role == WorkerRole::kBoth;
    saw_decode = true;
    if (!is_both && !HasPrefillPeer(view, worker)) continue;
    saw_capable = true;
    if (!Fits(worker, query)) continue;
    if (!is_both && !HasPrefillPeer(view, worker, query.num_tokens)) continue;
    saw_fitting = true;
    if (IsExcluded(query, worker.session)) continue;
    if (query.only_decode.value_or(worker.session) != worker.session) continue;
    (is_both ? both : paired).push_back(&worker);
  }
  const Candidate best = BestForDecode(view, paired, query);
  if (best.worker != nullptr && !best.cut_off) return {best.worker, NoRoute::kNone};
  const Candidate alone = BestForDecode(view, both, query);
  if (alone.worker != nullptr) return {alone.worker, NoRoute::kNone};
  if (best.worker != nullptr && !HasWayAround(view, query)) return {best.worker, NoRoute::kNone};
  if (!saw_decode) return {nullptr, NoRoute::kNoDecode};
  if (!saw_capable) return {nullptr, NoRoute::kNoPrefill};
  return {nullptr, saw_fitting ? NoRoute::kAllExcluded : NoRoute::kTooLong};
}

PrefillChoice ChoosePrefillWorker(const ClusterView& view, const RouteQuery& query,
                                  const DecodePeer& decode, const PrefixMatch& match,
                                  double default_tokens_per_second) {
  PrefillChoice best;
  best.none = NoRoute::kNoPrefill;
  for (const WorkerView& worker : view.workers) {
    if (worker.role != WorkerRole::kPrefill || worker.fingerprint != decode.fingerprint) continue;
    if (!Fits(worker, query)) {
      if (best.none == NoRoute::kNoPrefill) best.none = NoRoute::kTooLong;
      continue;
    }
    if (IsExcluded(query, worker.session)) {
      if (best.worker == nullptr) best.none = NoRoute::kAllExcluded;
      continue;
    }
    const int matched = match ? match(worker) : 0;
    // The last token is always computed: its logits choose the answer's first token.
    const int cached = std::min(matched * worker.kv_block_tokens, query.num_tokens - 1);
    const double rate = worker.prefill_tokens_per_second > 0 ? worker.prefill_tokens_per_second
                                                             : default_tokens_per_second;
    const double seconds =
        static_cast<double>(worker.queued_prefill_tokens + query.num_tokens - cached) / rate;
    const auto cost = [&](const WorkerView& w, double finish_seconds, int matched_blocks) {
      return std::make_tuple(w.is_late, IsSuspect(view, w.session, decode.session), finish_seconds,
                             -matched_blocks);
    };
    if (best.worker == nullptr ||
        cost(worker, seconds, matched) <
            cost(*best.worker, best.estimated_seconds, best.matched_blocks)) {
      best = {&worker, NoRoute::kNone, matched, seconds};
    }
  }
  return best;
}

std::string MissingRole(const ClusterView& view) {
  bool prefill = false, decode = false;
  for (const WorkerView& worker : view.workers) {
    if (worker.role == WorkerRole::kBoth) return "";
    if (worker.role == WorkerRole::kPrefill) prefill = true;
    if (worker.role == WorkerRole::kDecode) {
      if (HasPrefillPeer(view, worker)) return "";
      decode = true;
    }
  }
  if (!prefill && !decode) return "no ready prefill worker and no ready decode worker";
  if (!prefill) return "no ready prefill worker";
  if (!decode) return "no ready decode worker";
  return "no ready prefill worker is compatible with a ready decode worker";
}

RejectReason MissingRoleReason(const ClusterView& view) {
  switch (ChooseDecodeWorker(view, {}).none) {
    case NoRoute::kNoDecode:
      return RejectReason::kNoDecode;
    case NoRoute::kNoPrefill:
      return RejectReason::kNoPrefill;
    default:
      return RejectReason::kNone;
  }
}

}  // namespace sluice::router
