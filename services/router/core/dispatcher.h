// The seam inside the router: the API side (text, HTTP, gRPC) hands token sequences to the
// dispatcher and gets tokens back; the dispatcher side (admission, routing, journal, workers) knows
// nothing of text.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/sampling_params.h"
#include "services/router/core/time_stages.h"

namespace sluice::router {

// Over which public API a request came; a label of metrics.
enum class RequestApi { kOpenAi, kGrpc };

// One choice (n = 3 makes three of them) to generate.
struct GenerationSpec {
  RequestId id;
  RequestApi api = RequestApi::kOpenAi;
  std::vector<TokenId> prompt;
  SamplingParams sampling;  // seed always set
  std::string tenant_salt;
  // MonotonicNow() scale.
  absl::Time deadline = absl::InfiniteFuture();
  absl::Time submitted_at = absl::InfiniteFuture();  // unset: when the dispatcher hears of it
};

enum class GenerationEnd { kStop, kLength, kCancelled, kFailed };

struct GenerationResult {
  GenerationEnd end = GenerationEnd::kFailed;
  // With kFailed: RESOURCE_EXHAUSTED (queue full), UNAVAILABLE (no worker, draining),
  // DEADLINE_EXCEEDED, OUT_OF_RANGE (longer than the workers' context), INTERNAL (worker lost). The
  // message names stage and worker.
  absl::Status status;
  std::optional<absl::Duration> retry_after;  // when there may be a place; unset: nobody knows
  int cached_tokens = 0;
  TimeStages stages;  // from admission to prefill, kv_transfer to first_step
};

// Where a generation's tokens go. After OnEnd nothing more is called but Flush.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  // In the dispatcher's turn, in order; only keep what they bring.
  virtual void OnTokens(absl::Span<const SampledToken> tokens) = 0;
  virtual void OnEnd(const GenerationResult& result) = 0;
  // After a turn that called one of the above, on the same thread: see to it that what was kept
  // gets on its way. Two turns' flushes may come at the same time. With `alone`, few sinks heard
  // something and the thread may be used for the work itself; else only post it. Never blocks.
  virtual void Flush(bool alone) = 0;
};

// What the front tells its clients and operators about the cluster. A value; taken as a snapshot.
struct WorkerSnapshot {
  std::string worker_id, role, state, model, address, isa, dtype;
  int running = 0, waiting = 0;
  int64_t queued_tokens = 0;
  int64_t blocks_total = 0, blocks_free = 0, blocks_cached = 0, blocks_active = 0,
          blocks_receiving = 0, blocks_sending = 0, blocks_quarantined = 0;
  struct Transport {
    std::string peer, direction, transport;
    uint64_t bytes = 0;
    double bytes_per_second = 0;
  };
  std::vector<Transport> transports;
  absl::Duration heartbeat_age, uptime;
  double output_tokens_per_second = 0, prompt_tokens_per_second = 0;
};
struct ClusterSnapshot {
  std::vector<WorkerSnapshot> workers;
  int requests_queued = 0;
  int requests_running = 0;
  absl::Duration uptime;
  int max_model_len = 0;  // smallest over ready workers; 0 when there are none
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  // Any thread. Never fails here: refusals (queue full, no worker) come as OnEnd.
  virtual void Submit(GenerationSpec spec, std::shared_ptr<GenerationSink> sink) = 0;
  // Any thread; idempotent. OnEnd(kCancelled) follows unless the generation has ended already.
  virtual void Cancel(RequestId id) = 0;
  // The same for a front that has all it wants: a stop string was met. OnEnd(kStop) follows.
  virtual void Stop(RequestId id) = 0;
  // Any thread.
  virtual ClusterSnapshot Snapshot() const = 0;
  // "" when requests can be served now, else the reason (for /readyz and /health).
  virtual std::string NotReadyReason() const = 0;
};

}  // namespace sluice::router
