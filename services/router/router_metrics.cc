#include "services/router/router_metrics.h"

#include <algorithm>

namespace sluice::router {
namespace {

constexpr const char* kOutcomes[] = {"ok",       "client_error",   "rejected", "cancelled",
                                     "deadline", "upstream_error", "internal"};
constexpr const char* kApis[] = {"openai", "grpc"};  // by RequestApi
constexpr const char* kRejections[] = {"",          "queue_full", "queue_timeout", "no_prefill",
                                       "no_decode", "too_long",   "kv_exhausted",  "draining"};
// By RequestFlow::Phase. Waiting for decode blocks and asking for them is part of the queue.
constexpr const char* kPhases[] = {"queued",      "queued",       "queued", "prefill",
                                   "kv_transfer", "decode_queue", "decode"};
constexpr const char* kRoles[] = {"prefill", "decode", "both"};
constexpr const char* kStates[] = {"starting", "ready", "draining", "unreachable"};

constexpr char kHeartbeatAge[] = "sluice_worker_heartbeat_age_seconds";
constexpr char kHeartbeatAgeHelp[] = "Time since the worker was last heard.";

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

void AddDelta(Counter* counter, uint64_t value, uint64_t* seen) {
  counter->Increment(static_cast<double>(value - *seen));
  *seen = value;
}

}  // namespace

RouterMetrics::RouterMetrics(MetricsRegistry* registry, const std::string& model)
    : registry_(registry) {
  const MetricLabels by_model = {{"model", model}};
  const auto with = [&](const char* name, const char* value) {
    return MetricLabels{{"model", model}, {name, value}};
  };
  for (const char* api : kApis) {
    requests_.emplace_back();
    for (const char* outcome : kOutcomes) {
      requests_.back().push_back(registry->AddCounter(
          "sluice_requests_total", "Requests ended, each of n choices counted.",
          {{"model", model}, {"api", api}, {"outcome", outcome}}));
    }
  }
  for (const char* reason : kRejections) {
    rejections_.push_back(*reason == '\0'
                              ? nullptr
                              : registry->AddCounter("sluice_request_rejections_total",
                                                     "Requests refused before any token.",
                                                     {{"reason", reason}}));
  }
  for (int phase = 0; phase < static_cast<int>(std::size(kPhases)); ++phase) {
    in_flight_.emplace_back(
        registry->AddGauge("sluice_requests_in_flight", "Where accepted requests are now.",
                           with("phase", kPhases[phase])),
        phase);
  }
  request_duration_ = registry->AddHistogram("sluice_request_duration_seconds",
                                             "From Submit to the last token handed to the front.",
                                             E2eBuckets(), by_model);
  time_to_first_token_ = registry->AddHistogram(
      "sluice_time_to_first_token_seconds", "From Submit to the first token handed to the front.",
      TtftBuckets(), by_model);
  inter_token_latency_ =
      registry->AddHistogram("sluice_inter_token_latency_seconds",
                             "Gap between token events, per token.", ItlBuckets(), by_model);
  time_per_output_token_ = registry->AddHistogram(
      "sluice_time_per_output_token_seconds",
      "Mean gap between the tokens of a request, after its first.", ItlBuckets(), by_model);
  route_duration_ = registry->AddHistogram(
      "sluice_route_decision_duration_seconds",
      "One step of the router's core that chose workers, from its event to the orders.",
      {1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, .1});
  prefix_match_ratio_ = registry->AddHistogram(
      "sluice_route_prefix_match_ratio",
      "Share of a prompt that its prefill worker was expected to have cached.",
      {0, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1});
  recovery_pause_ = registry->AddHistogram(
      "sluice_request_recovery_pause_seconds",
      "Gap that a lost or failed worker left in an answer, as its client saw it.",
      RecoveryBuckets(), by_model);
  recovery_duration_ = registry->AddHistogram(
      "sluice_request_recovery_duration_seconds",
      "From the router's notice that an answer lost its worker (of several in a row: the last) to "
      "the answer's next token.",
      RecoveryBuckets(), by_model);
  prompt_tokens_ = registry->AddHistogram("sluice_request_prompt_tokens",
                                          "Prompt tokens of a request.", TokenBuckets(), by_model);
  output_tokens_ = registry->AddHistogram("sluice_request_output_tokens",
                                          "Output tokens of a request.", TokenBuckets(), by_model);
  for (const char* stage : kTimeStages) {
    stages_[stage] = registry->AddHistogram("sluice_request_stage_duration_seconds",
                                            "Stages of the time to the first and second token.",
                                            StageBuckets(), {{"stage", stage}});
  }
  const char* prompt_help = "Prompt tokens of answered requests, by where their KV came from.";
  prompt_computed_ =
      registry->AddCounter("sluice_prompt_tokens_total", prompt_help, with("source", "computed"));
  prompt_cached_ = registry->AddCounter("sluice_prompt_tokens_total", prompt_help,
                                        with("source", "prefix_cache"));
  output_tokens_total_ =
      registry->AddCounter("sluice_output_tokens_total", "Tokens handed to the fronts.", by_model);
  retry_queue_requests_ =
      registry->AddGauge("sluice_retry_queue_requests",
                         "Requests that lost a worker and wait for a place to start anew.");
  queue_requests_ = registry->AddGauge("sluice_admission_queue_requests",
                                       "Requests waiting for a place among the running ones.");
  queue_duration_ =
      registry->AddHistogram("sluice_admission_queue_duration_seconds",
                             "Time in the admission queue of admitted requests.", StageBuckets());
  draining_ = registry->AddGauge("sluice_draining", "1 while the process drains.");
  drain_remaining_ = registry->AddGauge("sluice_drain_remaining_requests",
                                        "Requests that a draining process still runs.");
  for (const char* role : kRoles) {
    workers_.emplace_back();
    for (const char* state : kStates) {
      workers_.back().push_back(registry->AddGauge("sluice_workers", "Attached workers.",
                                                   {{"role", role}, {"state", state}}));
    }
    membership_events_.emplace_back();
    for (const char* event : kMembershipEventNames) {
      membership_events_.back().push_back(registry->AddCounter(
          "sluice_worker_membership_events_total", "Workers that came, went or were refused.",
          {{"role", role}, {"event", event}}));
    }
  }
  for (const char* stage : kStageNames) {
    retries_.emplace_back();
    for (const char* reason : kRetryReasonNames) {
      retries_.back().push_back(registry->AddCounter("sluice_request_retries_total",
                                                     "Requests planned anew.",
                                                     {{"stage", stage}, {"reason", reason}}));
    }
  }
  for (const char* decision : kRouteDecisionNames) {
    route_decisions_.push_back(registry->AddCounter("sluice_route_decisions_total",
                                                    "Attempts by how they were placed.",
                                                    {{"decision", decision}}));
  }
  for (const char* reason : kStaleReasonNames) {
    stale_messages_.push_back(registry->AddCounter("sluice_stale_messages_total",
                                                   "Messages of workers that were dropped.",
                                                   {{"reason", reason}}));
  }
}

void RouterMetrics::OnTokens(const EmitTokens& emitted) {
  const double count = static_cast<double>(emitted.tokens.size());
  output_tokens_total_->Increment(count);
  if (emitted.first) {
    time_to_first_token_->Observe(Seconds(emitted.since_previous));
  } else {
    inter_token_latency_->Observe(Seconds(emitted.since_previous) / count);
  }
  if (emitted.since_failure.has_value()) {
    recovery_pause_->Observe(Seconds(emitted.since_previous));
    recovery_duration_->Observe(Seconds(*emitted.since_failure));
  }
}

RouterMetrics::Outcome RouterMetrics::OutcomeOf(const EndRequest& ended) {
  const GenerationResult& result = ended.result;
  switch (result.end) {
    case GenerationEnd::kStop:
    case GenerationEnd::kLength:
      return kOk;
    case GenerationEnd::kCancelled:
      return kCancelled;
    case GenerationEnd::kFailed:
      break;
  }
  switch (result.status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kClientError;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return ended.output_tokens > 0 ? kUpstreamError : kRejected;
    case absl::StatusCode::kDeadlineExceeded:
      return kDeadline;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDataLoss:
      return kUpstreamError;
    default:
      return kInternal;
  }
}

void RouterMetrics::OnEnd(const EndRequest& ended) {
  requests_[static_cast<int>(ended.api)][OutcomeOf(ended)]->Increment();
  if (Counter* rejections = rejections_[static_cast<int>(ended.reject)]) rejections->Increment();
  for (const auto& [stage, duration] : ended.result.stages) {
    if (const auto it = stages_.find(stage); it != stages_.end()) {
      it->second->Observe(Seconds(duration));
    }
  }
  if (const auto it = ended.result.stages.find("admission"); it != ended.result.stages.end()) {
    queue_duration_->Observe(Seconds(it->second));
  }
  if (ended.prefix_match_ratio.has_value()) prefix_match_ratio_->Observe(*ended.prefix_match_ratio);
  if (ended.time_per_output_token.has_value()) {
    time_per_output_token_->Observe(Seconds(*ended.time_per_output_token));
  }
  if (ended.output_tokens == 0) return;
  request_duration_->Observe(Seconds(ended.duration));
  prompt_tokens_->Observe(ended.prompt_tokens);
  output_tokens_->Observe(ended.output_tokens);
  prompt_cached_->Increment(ended.result.cached_tokens);
  prompt_computed_->Increment(std::max(0, ended.prompt_tokens - ended.result.cached_tokens));
}

void RouterMetrics::OnRouted(absl::Duration duration) {
  route_duration_->Observe(Seconds(duration));
}

void RouterMetrics::OnTick(const RouterCore& core, absl::Time now) {
  // Several phases share one gauge, so sum first.
  const std::vector<int> phases = core.CountPhases();
  absl::btree_map<Gauge*, int> sums;
  for (const auto& [gauge, phase] : in_flight_) sums[gauge] += phases[phase];
  for (const auto& [gauge, count] : sums) gauge->Set(count);
  queue_requests_->Set(core.num_queued());
  retry_queue_requests_->Set(static_cast<double>(core.retries().num_waiting()));
  draining_->Set(core.draining() ? 1 : 0);
  drain_remaining_->Set(core.draining() ? core.num_queued() + core.num_running() : 0);
  UpdateWorkers(core, now);
  UpdateCounters(core.counters());
}

void RouterMetrics::UpdateWorkers(const RouterCore& core, absl::Time now) {
  const Membership& membership = core.membership();
  std::vector<std::vector<int>> counts(std::size(kRoles), std::vector<int>(std::size(kStates)));
  auto gone = heartbeat_ages_;
  for (const auto& [session, member] : membership.members()) {
    const int role = static_cast<int>(member.info.role);
    ++counts[role][static_cast<int>(membership.StateOf(member, now))];
    const std::pair<std::string, std::string> key(kRoles[role], member.info.worker_id);
    Gauge*& age = heartbeat_ages_[key];
    if (age == nullptr) {
      age = registry_->AddGauge(kHeartbeatAge, kHeartbeatAgeHelp,
                                {{"role", key.first}, {"worker", key.second}});
    }
    age->Set(Seconds(now - member.last_heard));
    gone.erase(key);
  }
  for (const auto& [key, gauge] : gone) {
    registry_->RemoveGauge(kHeartbeatAge, {{"role", key.first}, {"worker", key.second}});
    heartbeat_ages_.erase(key);
  }
  for (size_t role = 0; role < counts.size(); ++role) {
    for (size_t state = 0; state < counts[role].size(); ++state) {
      workers_[role][state]->Set(counts[role][state]);
    }
  }
}

void RouterMetrics::UpdateCounters(const CoreCounters& counters) {
  for (size_t i = 0; i < stale_messages_.size(); ++i) {
    AddDelta(stale_messages_[i], counters.stale_messages[i], &seen_.stale_messages[i]);
  }
  for (size_t i = 0; i < route_decisions_.size(); ++i) {
    AddDelta(route_decisions_[i], counters.route_decisions[i], &seen_.route_decisions[i]);
  }
  for (size_t role = 0; role < membership_events_.size(); ++role) {
    for (size_t event = 0; event < membership_events_[role].size(); ++event) {
      AddDelta(membership_events_[role][event], counters.membership_events[role][event],
               &seen_.membership_events[role][event]);
    }
  }
  for (size_t stage = 0; stage < retries_.size(); ++stage) {
    for (size_t reason = 0; reason < retries_[stage].size(); ++reason) {
      AddDelta(retries_[stage][reason], counters.retries[stage][reason],
               &seen_.retries[stage][reason]);
    }
  }
}

}  // namespace sluice::router
