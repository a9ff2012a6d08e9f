// The engine thread: owns the engine and the role's request handler, and is the only one to call
// them. Others post commands to a bounded queue. Steps while there is work, else sleeps on the
// queue; never waits for the network.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <variant>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/bounded_queue.h"
#include "common/clock.h"
#include "engine/runtime/engine.h"
#include "services/rpc/fleet_codec.h"
#include "services/worker_runtime/load_board.h"
#include "services/worker_runtime/request_handler.h"
#include "services/worker_runtime/worker_metrics.h"

namespace sluice::worker {

struct ReserveCommand {
  rpc::SessionId session;
  rpc::SequenceAttempt sequence;
};
struct PrefillCommand {
  rpc::SessionId session;
  rpc::PrefillOrder order;
};
struct RunCommand {
  rpc::SessionId session;
  rpc::SequenceAttempt sequence;
};
struct CancelCommand {
  rpc::SessionId session;
  rpc::CancelOrder order;
};
struct SessionLostCommand {
  rpc::SessionId session;
};
struct DrainCommand {};
struct AbortAllCommand {
  absl::Status why;
};

// From routers: may be refused when the queue is half full.
using RouterCommand = std::variant<ReserveCommand, PrefillCommand, RunCommand, CancelCommand>;
// From our own threads: bounded by the number of transfers and sessions.
using InternalCommand =
    std::variant<ReserveAnswer, TransferEvent, SessionLostCommand, DrainCommand, AbortAllCommand>;

class EngineLoop {
 public:
  // Everything given outlives the loop.
  EngineLoop(Engine* engine, RequestHandler* handler, LoadBoard* board, WorkerMetrics* metrics,
             const Clock* clock, size_t queue_capacity = 1 << 16);
  ~EngineLoop();  // stops

  // `niceness` of the thread (common/niceness.h).
  void Start(int niceness = 0);
  // Ends after the commands queued so far; joins. Idempotent.
  void Stop();

  // False: full or stopped; the command is dropped. Any thread, never blocks.
  [[nodiscard]] bool Post(RouterCommand command);
  [[nodiscard]] bool Post(InternalCommand command);

  // Since the thread last finished a round. Any thread.
  absl::Duration HeartbeatAge() const;
  // Since the thread last finished a round in which the engine computed something or had nothing to
  // do: grows while a step does not return, and while steps return without doing any of the work
  // there is. Any thread.
  absl::Duration StuckFor() const;

 private:
  using Command = std::variant<RouterCommand, InternalCommand>;

  void Run();
  void Apply(RouterCommand command);
  void Apply(InternalCommand command);
  void StepOnce();
  void Publish(absl::Time now);
  void Beat(absl::Time now);

  // Constant after construction.
  Engine* const engine_;
  RequestHandler* const handler_;
  LoadBoard* const board_;
  WorkerMetrics* const metrics_;
  const Clock* const clock_;

  BoundedQueue<Command> queue_;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> last_beat_nanos_;      // of clock_
  std::atomic<int64_t> last_progress_nanos_;  // of clock_

  // Owned by thread_.
  RateMeter prefill_rate_;
  RateMeter decode_rate_;
  absl::Time last_publish_ = absl::InfinitePast();
  absl::Time last_block_report_ = absl::InfinitePast();
  bool stalled_ = false;  // the last step was idle
  EndingStage ending_ = EndingStage::kNone;

  std::thread thread_;
};

}  // namespace sluice::worker
