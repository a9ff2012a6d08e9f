// What routing knows of the cluster at one moment. An immutable value, made by Membership; policies
// are pure functions of it.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "services/router/core/messages.h"

namespace sluice::router {

struct WorkerView {
  SessionId session;
  std::string worker_id;
  WorkerRole role = WorkerRole::kBoth;
  std::string fingerprint;
  int max_model_len = 0;
  int max_num_seqs = 0;
  int kv_block_tokens = 0;

  // The larger of what the worker reports (other routers' requests included) and what this router
  // has given it (which may not be in a report yet).
  int requests = 0;
  int64_t queued_prefill_tokens = 0;
  // Free or evictable blocks, less those promised to requests since the last report.
  int64_t available_blocks = 0;
  double prefill_tokens_per_second = 0;  // 0: not known
  // It should have reported by now: busy, or gone and not yet noticed.
  bool is_late = false;
};

// The way that KV takes from a prefill to a decode worker.
struct KvLink {
  SessionId prefill;
  SessionId decode;
  friend bool operator<(const KvLink& a, const KvLink& b) {
    return std::tie(a.prefill, a.decode) < std::tie(b.prefill, b.decode);
  }
};

struct ClusterView {
  std::vector<WorkerView> workers;         // ready ones, by worker_id
  std::vector<KvLink> suspect_links = {};  // transfers failed there a moment ago; in order
};

}  // namespace sluice::router
