// Every metric of a worker. Families and label combinations are created up front, so counters exist
// at 0 before the first event. Updating is thread-safe.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "metrics/metrics.h"
#include "services/rpc/fleet_codec.h"

namespace sluice::worker {

enum class TransferDirection { kSend, kReceive };

// What came of asking a decode worker for the beginning of a prompt.
enum class FetchResult { kOk, kPartial, kFailed };

// Messages that are not acted upon.
enum class IgnoredReason {
  kStaleAttempt,
  kDuplicate,
  kUnknown,
  kOtherRouter,
  kWrongRole,
  kMalformed
};

class WorkerMetrics {
 public:
  // `registry` must outlive this.
  explicit WorkerMetrics(MetricsRegistry* registry);

  void SetModelInfo(const MetricLabels& labels);
  void SetLoadDuration(absl::Duration duration);

  void Step(const StepResult& result, absl::Duration duration);
  void Load(const EngineLoad& load);
  void PrefixLookup(int queried_tokens, int hit_tokens);
  void PrefixFetched(FetchResult result, int tokens);
  void QueueTime(absl::Duration duration);
  void Ignored(IgnoredReason reason);
  void RequestEnded(rpc::RequestEndReason reason);

  void TransferEnded(TransferDirection direction, const std::string& transport,
                     const absl::Status& status, absl::Duration duration);
  void TransferBytes(TransferDirection direction, const std::string& transport, uint64_t bytes);
  void TransferExposed(const std::string& transport, absl::Duration exposed);
  void TransfersInFlight(int sends, int receives);
  void TransferFaults(uint64_t refused, uint64_t bad_checksums, uint64_t resends);

  void SetDraining(bool draining);
  void SetDrainRemaining(int requests);
  void SetAttachedRouters(int routers);

 private:
  MetricsRegistry* const registry_;
  Histogram* step_duration_[2];  // decode, prefill
  Histogram* step_tokens_[2];
  Gauge* running_;
  Gauge* waiting_;
  Gauge* queued_prefill_tokens_;
  std::map<std::string, Gauge*> blocks_;
  Gauge* usage_;
  Counter* preemptions_;
  Counter* prefix_queried_;
  Counter* prefix_hit_;
  std::map<FetchResult, Counter*> fetches_;
  Counter* fetched_tokens_;
  Histogram* queue_time_;
  std::map<IgnoredReason, Counter*> ignored_;
  std::map<rpc::RequestEndReason, Counter*> ended_;
  Gauge* transfers_in_flight_[2];  // send, recv
  Counter* refused_;
  Counter* bad_checksums_;
  Counter* resends_;
  Gauge* draining_;
  Gauge* drain_remaining_;
  Gauge* routers_;
};

// Closed label sets. A transport outside of the known ones is "other".
std::string TransportLabel(absl::string_view transport);
// ok, cancelled, timeout, peer_lost, checksum, incompatible, or failed.
std::string OutcomeLabel(const absl::Status& status);

}  // namespace sluice::worker
