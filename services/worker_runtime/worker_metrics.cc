#include "services/worker_runtime/worker_metrics.h"

#include <array>

namespace sluice::worker {
namespace {

constexpr std::array<const char*, 6> kTransports = {"shm", "tcp", "rdma", "self", "sim", "other"};
constexpr std::array<const char*, 7> kOutcomes = {
    "ok", "cancelled", "timeout", "peer_lost", "checksum", "incompatible", "failed"};
constexpr std::array<const char*, 2> kDirections = {"send", "recv"};

const char* DirectionLabel(TransferDirection direction) {
  return kDirections[direction == TransferDirection::kReceive];
}

constexpr char kTransfers[] = "sluice_kv_transfers_total";
constexpr char kTransfersHelp[] = "KV transfers ended, by what UCX chose and how they ended.";
constexpr char kTransferBytes[] = "sluice_kv_transfer_bytes_total";
constexpr char kTransferBytesHelp[] = "KV bytes moved, by what UCX chose.";
constexpr char kTransferDuration[] = "sluice_kv_transfer_duration_seconds";
constexpr char kTransferDurationHelp[] =
    "First offer to last block verified, successful transfers.";
constexpr char kTransferExposed[] = "sluice_kv_transfer_exposed_seconds";
constexpr char kTransferExposedHelp[] = "The part of a transfer after prefill had ended.";

// Raises a counter that mirrors a total kept elsewhere.
void RaiseTo(Counter* counter, uint64_t total) {
  const double missing = static_cast<double>(total) - counter->Value();
  if (missing > 0) counter->Increment(missing);
}

}  // namespace

std::string TransportLabel(absl::string_view transport) {
  for (const char* known : kTransports) {
    if (transport == known) return known;
  }
  return "other";
}

std::string OutcomeLabel(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return "ok";
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kAborted:
      return "cancelled";
    case absl::StatusCode::kDeadlineExceeded:
      return "timeout";
    case absl::StatusCode::kUnavailable:
      return "peer_lost";
    case absl::StatusCode::kDataLoss:
      return "checksum";
    case absl::StatusCode::kFailedPrecondition:
      return "incompatible";
    default:
      return "failed";
  }
}

WorkerMetrics::WorkerMetrics(MetricsRegistry* registry) : registry_(registry) {
  const char* phases[] = {"decode", "prefill"};
  for (int i = 0; i < 2; ++i) {
    step_duration_[i] = registry->AddHistogram(
        "sluice_engine_step_duration_seconds",
        "Duration of engine steps; a step with any prompt tokens counts as prefill.",
        StageBuckets(), {{"phase", phases[i]}});
    step_tokens_[i] = registry->AddHistogram("sluice_engine_step_tokens", "Tokens of one step.",
                                             TokenBuckets(), {{"phase", phases[i]}});
    transfers_in_flight_[i] =
        registry->AddGauge("sluice_kv_transfers_in_flight", "KV transfers that have not ended.",
                           {{"direction", kDirections[i]}});
  }
  running_ = registry->AddGauge("sluice_engine_requests_running", "Sequences in the batch.");
  waiting_ =
      registry->AddGauge("sluice_engine_requests_waiting",
                         "Sequences that wait for their first step.", {{"reason", "capacity"}});
  queued_prefill_tokens_ = registry->AddGauge("sluice_engine_queued_prefill_tokens",
                                              "Prompt tokens accepted and not yet computed.");
  for (const char* state : {"free", "cached", "active", "receiving", "sending", "quarantined"}) {
    blocks_[state] = registry->AddGauge(
        "sluice_kv_blocks", "KV blocks by state; the states sum to the pool.", {{"state", state}});
  }
  usage_ = registry->AddGauge("sluice_kv_usage_ratio",
                              "Share of KV blocks that cannot be given to a new request.");
  preemptions_ = registry->AddCounter("sluice_engine_preemptions_total",
                                      "Times that a sequence gave its KV blocks up for want of "
                                      "blocks: handed back to the router, or computed again here.",
                                      {{"reason", "capacity"}});
  prefix_queried_ = registry->AddCounter("sluice_kv_prefix_queried_tokens_total",
                                         "Prompt tokens looked up in the prefix cache.");
  prefix_hit_ = registry->AddCounter("sluice_kv_prefix_hit_tokens_total",
                                     "Prompt tokens found in the prefix cache.");
  const std::pair<FetchResult, const char*> results[] = {{FetchResult::kOk, "ok"},
                                                         {FetchResult::kPartial, "partial"},
                                                         {FetchResult::kFailed, "failed"}};
  for (const auto& [result, label] : results) {
    fetches_[result] = registry->AddCounter(
        "sluice_kv_prefix_fetches_total",
        "Beginnings of prompts asked of decode workers: all, some or none came.",
        {{"result", label}});
  }
  fetched_tokens_ = registry->AddCounter("sluice_kv_prefix_fetched_tokens_total",
                                         "Prompt tokens that came from decode workers.");
  queue_time_ = registry->AddHistogram("sluice_engine_queue_duration_seconds",
                                       "From arrival to the first step.", StageBuckets());
  const std::pair<IgnoredReason, const char*> reasons[] = {
      {IgnoredReason::kStaleAttempt, "stale_attempt"},
      {IgnoredReason::kDuplicate, "duplicate"},
      {IgnoredReason::kUnknown, "unknown"},
      {IgnoredReason::kOtherRouter, "other_router"},
      {IgnoredReason::kWrongRole, "wrong_role"},
      {IgnoredReason::kMalformed, "malformed"},
  };
  for (const auto& [reason, label] : reasons) {
    ignored_[reason] =
        registry->AddCounter("sluice_worker_messages_ignored_total",
                             "Router messages that were not acted upon.", {{"reason", label}});
  }
  const std::pair<rpc::RequestEndReason, const char*> ends[] = {
      {rpc::RequestEndReason::kStop, "stop"},
      {rpc::RequestEndReason::kLength, "length"},
      {rpc::RequestEndReason::kCancelled, "cancelled"},
      {rpc::RequestEndReason::kFailed, "failed"},
      {rpc::RequestEndReason::kHandedOver, "handed_over"},
  };
  for (const auto& [reason, label] : ends) {
    ended_[reason] = registry->AddCounter("sluice_worker_requests_ended_total",
                                          "Attempts that ended here.", {{"reason", label}});
  }
  for (const char* transport : kTransports) {
    for (const char* direction : kDirections) {
      const MetricLabels labels = {{"direction", direction}, {"transport", transport}};
      registry->AddCounter(kTransferBytes, kTransferBytesHelp, labels);
      registry->AddHistogram(kTransferDuration, kTransferDurationHelp, TransferBuckets(), labels);
      for (const char* outcome : kOutcomes) {
        MetricLabels with_outcome = labels;
        with_outcome["outcome"] = outcome;
        registry->AddCounter(kTransfers, kTransfersHelp, with_outcome);
      }
    }
    registry->AddHistogram(kTransferExposed, kTransferExposedHelp, TransferBuckets(),
                           {{"transport", transport}});
  }
  refused_ = registry->AddCounter("sluice_kv_messages_refused_total",
                                  "Transfer messages refused: stale, unknown or incompatible.");
  bad_checksums_ = registry->AddCounter("sluice_kv_checksum_failures_total",
                                        "KV payloads that arrived damaged.");
  resends_ = registry->AddCounter("sluice_kv_resends_total", "KV messages sent again.");
  draining_ =
      registry->AddGauge("sluice_draining", "1 while the worker finishes and takes nothing new.");
  drain_remaining_ = registry->AddGauge("sluice_drain_remaining_requests",
                                        "Requests a draining worker still has to finish.");
  routers_ = registry->AddGauge("sluice_worker_attached_routers", "Routers attached to now.");
}

void WorkerMetrics::SetModelInfo(const MetricLabels& labels) {
  registry_->AddGauge("sluice_model_info", "The served model; always 1.", labels)->Set(1);
}

void WorkerMetrics::SetLoadDuration(absl::Duration duration) {
  registry_
      ->AddGauge("sluice_model_load_duration_seconds", "Time to load and pack the weights.",
                 {{"stage", "total"}})
      ->Set(absl::ToDoubleSeconds(duration));
}

void WorkerMetrics::Step(const StepResult& result, absl::Duration duration) {
  const int phase = result.num_prefill_tokens > 0;
  step_duration_[phase]->Observe(absl::ToDoubleSeconds(duration));
  step_tokens_[phase]->Observe(result.num_prefill_tokens + result.num_decode_tokens);
}

void WorkerMetrics::Load(const EngineLoad& load) {
  running_->Set(load.running);
  waiting_->Set(load.waiting);
  queued_prefill_tokens_->Set(static_cast<double>(load.queued_prefill_tokens));
  RaiseTo(preemptions_, static_cast<uint64_t>(load.num_preemptions));
  const BlockCounts& b = load.blocks;
  blocks_.at("free")->Set(static_cast<double>(b.free));
  blocks_.at("cached")->Set(static_cast<double>(b.cached));
  blocks_.at("active")->Set(static_cast<double>(b.active));
  blocks_.at("receiving")->Set(static_cast<double>(b.receiving));
  blocks_.at("sending")->Set(static_cast<double>(b.sending));
  blocks_.at("quarantined")->Set(static_cast<double>(b.quarantined));
  if (b.total > 0) {
    usage_->Set(1.0 - static_cast<double>(b.free + b.cached) / static_cast<double>(b.total));
  }
}

void WorkerMetrics::PrefixLookup(int queried_tokens, int hit_tokens) {
  prefix_queried_->Increment(queried_tokens);
  prefix_hit_->Increment(hit_tokens);
}

void WorkerMetrics::PrefixFetched(FetchResult result, int tokens) {
  fetches_.at(result)->Increment();
  fetched_tokens_->Increment(tokens);
}

void WorkerMetrics::QueueTime(absl::Duration duration) {
  queue_time_->Observe(absl::ToDoubleSeconds(duration));
}

void WorkerMetrics::Ignored(IgnoredReason reason) { ignored_.at(reason)->Increment(); }

void WorkerMetrics::RequestEnded(rpc::RequestEndReason reason) { ended_.at(reason)->Increment(); }

void WorkerMetrics::TransferEnded(TransferDirection direction, const std::string& transport,
                                  const absl::Status& status, absl::Duration duration) {
  const MetricLabels labels = {{"direction", DirectionLabel(direction)},
                               {"transport", TransportLabel(transport)}};
  if (status.ok()) {
    registry_->AddHistogram(kTransferDuration, kTransferDurationHelp, TransferBuckets(), labels)
        ->Observe(absl::ToDoubleSeconds(duration));
  }
  MetricLabels with_outcome = labels;
  with_outcome["outcome"] = OutcomeLabel(status);
  registry_->AddCounter(kTransfers, kTransfersHelp, with_outcome)->Increment();
}

void WorkerMetrics::TransferBytes(TransferDirection direction, const std::string& transport,
                                  uint64_t bytes) {
  if (bytes == 0) return;
  registry_
      ->AddCounter(
          kTransferBytes, kTransferBytesHelp,
          {{"direction", DirectionLabel(direction)}, {"transport", TransportLabel(transport)}})
      ->Increment(static_cast<double>(bytes));
}

void WorkerMetrics::TransferExposed(const std::string& transport, absl::Duration exposed) {
  registry_
      ->AddHistogram(kTransferExposed, kTransferExposedHelp, TransferBuckets(),
                     {{"transport", TransportLabel(transport)}})
      ->Observe(absl::ToDoubleSeconds(exposed));
}

void WorkerMetrics::TransfersInFlight(int sends, int receives) {
  transfers_in_flight_[0]->Set(sends);
  transfers_in_flight_[1]->Set(receives);
}

void WorkerMetrics::TransferFaults(uint64_t refused, uint64_t bad_checksums, uint64_t resends) {
  RaiseTo(refused_, refused);
  RaiseTo(bad_checksums_, bad_checksums);
  RaiseTo(resends_, resends);
}

void WorkerMetrics::SetDraining(bool draining) { draining_->Set(draining ? 1 : 0); }
void WorkerMetrics::SetDrainRemaining(int requests) { drain_remaining_->Set(requests); }
void WorkerMetrics::SetAttachedRouters(int routers) { routers_->Set(routers); }

}  // namespace sluice::worker
