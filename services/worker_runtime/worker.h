// A running worker: engine thread, transfer thread and router sessions around one role's handler,
// wired and owned here. Made after the engine is loaded. Start, drain and stop from one thread
// (main); the probes from any.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "engine/runtime/engine.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/kv_channel.h"
#include "metrics/metrics.h"
#include "services/worker_runtime/engine_loop.h"
#include "services/worker_runtime/load_board.h"
#include "services/worker_runtime/request_handler.h"
#include "services/worker_runtime/router_sessions.h"
#include "services/worker_runtime/transfer_loop.h"
#include "services/worker_runtime/worker_metrics.h"

namespace sluice::worker {

using HandlerFactory = std::function<std::unique_ptr<RequestHandler>(const HandlerContext&)>;

struct WorkerOptions {
  std::string worker_id;
  std::string role;  // prefill, decode, both
  std::string served_model_name;
  std::string dtype;
  std::string admin_address;
  int max_num_seqs = 0;
  int compute_niceness = 0;  // of the engine thread (common/niceness.h)
  RouterSessionsOptions routers;
  TransferOptions transfer;
  Incarnation incarnation;       // random per start
  absl::Duration load_duration;  // of the engine, for the metrics
  // A worker whose engine or transfer thread has not finished a round for this long is not ready.
  absl::Duration heartbeat_limit = absl::Seconds(5);
  // One in which either has been stuck for this long is not live: only a restart helps. A step
  // that takes longer than this by itself is too long for anybody who waits.
  absl::Duration hang_limit = absl::Seconds(60);
  // The transfer thread's queue is full: the worker cannot go on. May be called from any thread.
  std::function<void(const std::string& why)> on_fatal;
};

// The way KV leaves and enters the process. Both null for a worker of role both.
struct TransferParts {
  std::unique_ptr<KvChannel> channel;
  std::unique_ptr<TransferAgent> agent;
};

class Worker {
 public:
  // Starts every thread and dials the routers. `registry` outlives the worker.
  static std::unique_ptr<Worker> Start(WorkerOptions options, std::unique_ptr<Engine> engine,
                                       TransferParts transfer, const HandlerFactory& make_handler,
                                       MetricsRegistry* registry);
  ~Worker();  // stops
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Announces draining; nothing new is accepted. Idempotent; any thread.
  void BeginDrain();
  // Waits until what came before, and its transfers, have ended. False: `timeout` passed first.
  // REQUIRES: BeginDrain was called.
  bool WaitDrained(absl::Duration timeout);
  // Tells the routers that what still runs here has failed, and ends all threads. Idempotent.
  void Stop();

  // "" when this worker can take requests, else why not. Any thread.
  std::string NotReadyReason() const;
  // "" while engine and transfer thread make progress or have nothing to do, else what is wrong.
  // Any thread.
  std::string NotLiveReason() const;
  int num_requests() const;
  // Who holds the KV blocks, as of the engine thread's last report. Any thread.
  std::string BlocksJson() const;

 private:
  Worker(WorkerOptions options, std::unique_ptr<Engine> engine, TransferParts transfer,
         const HandlerFactory& make_handler, MetricsRegistry* registry);
  // "" while engine and transfer thread finish their rounds, else which one does not.
  std::string StandstillReason() const;
  std::string TransferStandstillReason(absl::Duration limit) const;

  // The engine thread has got that far, and no request lives.
  bool HasEnded(EndingStage stage) const;

  const WorkerOptions options_;
  const Clock* const clock_ = &RealClock();

  // Destroyed in reverse: sessions, then loops, then the handler, then the engine whose memory the
  // transfers use.
  const std::unique_ptr<Engine> engine_;
  WorkerMetrics metrics_;
  LoadBoard board_;
  std::unique_ptr<RouterSessions> sessions_;
  std::unique_ptr<TransferLoop> transfers_;  // null for role both
  std::unique_ptr<RequestHandler> handler_;
  std::unique_ptr<EngineLoop> loop_;

  std::atomic<bool> draining_{false};
  std::atomic<bool> drain_posted_{false};  // to the engine thread, whose queue may be full
  bool stopped_ = false;
};

}  // namespace sluice::worker
