// Metric families of the router's core and fleet: requests, admission, routing, workers. Created
// once per router with every closed label set; updated on the dispatcher thread only.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "metrics/metrics.h"
#include "services/router/fleet/dispatcher_thread.h"

namespace sluice::router {

class RouterMetrics final : public DispatcherObserver {
 public:
  // `registry` must outlive this. `model` is the served name.
  RouterMetrics(MetricsRegistry* registry, const std::string& model);

  void OnTokens(const EmitTokens& emitted) override;
  void OnEnd(const EndRequest& ended) override;
  void OnRouted(absl::Duration duration) override;
  void OnTick(const RouterCore& core, absl::Time now) override;

 private:
  // How requests end, as labels of sluice_requests_total.
  enum Outcome { kOk, kClientError, kRejected, kCancelled, kDeadline, kUpstreamError, kInternal };
  static Outcome OutcomeOf(const EndRequest& ended);

  void UpdateWorkers(const RouterCore& core, absl::Time now);
  // Counters of the core only grow; adds what came since the last call.
  void UpdateCounters(const CoreCounters& counters);

  // Constant after construction.
  MetricsRegistry* const registry_;
  std::vector<std::vector<Counter*>> requests_;    // by RequestApi, then by Outcome
  std::vector<Counter*> rejections_;               // by RejectReason; null for kNone
  std::vector<std::pair<Gauge*, int>> in_flight_;  // gauge, RequestFlow::Phase it counts
  Histogram* request_duration_ = nullptr;
  Histogram* time_to_first_token_ = nullptr;
  Histogram* inter_token_latency_ = nullptr;
  Histogram* time_per_output_token_ = nullptr;
  Histogram* route_duration_ = nullptr;
  Histogram* prefix_match_ratio_ = nullptr;
  Histogram* recovery_pause_ = nullptr;
  Histogram* recovery_duration_ = nullptr;
  Histogram* prompt_tokens_ = nullptr;
  Histogram* output_tokens_ = nullptr;
  absl::btree_map<std::string, Histogram*> stages_;
  Counter* prompt_computed_ = nullptr;
  Counter* prompt_cached_ = nullptr;
  Counter* output_tokens_total_ = nullptr;
  Gauge* queue_requests_ = nullptr;
  Gauge* retry_queue_requests_ = nullptr;
  Histogram* queue_duration_ = nullptr;
  Gauge* draining_ = nullptr;
  Gauge* drain_remaining_ = nullptr;
  // By role, then by what the enum of core_counters.h or Membership::State says.
  std::vector<std::vector<Gauge*>> workers_;
  std::vector<std::vector<Counter*>> membership_events_;
  std::vector<std::vector<Counter*>> retries_;
  std::vector<Counter*> route_decisions_;
  std::vector<Counter*> stale_messages_;

  CoreCounters seen_;
  // Workers whose heartbeat age is exported: (role, worker_id).
  absl::btree_map<std::pair<std::string, std::string>, Gauge*> heartbeat_ages_;
};

}  // namespace sluice::router
