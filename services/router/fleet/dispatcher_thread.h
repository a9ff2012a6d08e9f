// Runs the router's core, in turns. Everything from outside (the fronts' requests, the workers'
// messages) comes through one mailbox. Whoever has the turn owns the core: it takes what is in the
// mailbox, steps the core, and carries its actions out: tokens to sinks, messages to the fleet
// port. A thread of gRPC that brings a worker's message while nobody has the turn takes it for that
// mail, so that a token on a quiet router wakes no second thread. Everything else is for the
// dispatcher's own thread: what comes meanwhile, so that nobody else serves more than one turn; the
// fronts' requests, many of which then leave together; and timers. It sleeps until there is
// something for it.
//
// Bounds of the mailbox: a session has at most its read window of events in it; submitted requests
// are at most `max_mailbox_requests`, beyond which only the sink is kept, to be refused.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/monotonic_cond_var.h"
#include "services/router/core/dispatcher.h"
#include "services/router/core/router_core.h"
#include "services/router/fleet/fleet_port.h"

namespace sluice::router {

// Told what happens, for metrics. Called by whoever has the turn, so never twice at a time; must be
// quick.
class DispatcherObserver {
 public:
  virtual ~DispatcherObserver() = default;
  virtual void OnTokens(const EmitTokens& emitted) = 0;
  virtual void OnEnd(const EndRequest& ended) = 0;
  // A step of the core that chose workers, for one request or several, took `duration`.
  virtual void OnRouted(absl::Duration duration) = 0;
  // Several times a second.
  virtual void OnTick(const RouterCore& core, absl::Time now) = 0;
};

struct DispatcherOptions {
  CoreOptions core;
  int max_mailbox_requests = 4096;
  // How often the port ticks and the snapshot is renewed, also when nothing happens.
  absl::Duration tick_interval = absl::Milliseconds(100);
  // A router whose dispatcher has not ticked for this long is not ready: a turn, or what the thread
  // does between two, does not end.
  absl::Duration heartbeat_limit = absl::Seconds(5);
  // After this long it is not live either: only a restart helps.
  absl::Duration hang_limit = absl::Seconds(60);
};

class DispatcherThread final : public Dispatcher, public FleetListener {
 public:
  // `observer` may be null; else it must outlive this.
  DispatcherThread(DispatcherOptions options, DispatcherObserver* observer);
  ~DispatcherThread() override;  // stops

  // `port` must live until Stop has returned.
  void Start(FleetPort* port);
  // Ends what still runs with UNAVAILABLE, frees it at the workers, and joins. Idempotent.
  void Stop();

  // NotReadyReason says "draining" from now on; requests are still accepted.
  void AnnounceDrain();
  // The same, and new requests are refused.
  void StartDrain();
  // True when no request was left within `timeout`.
  bool WaitUntilIdle(absl::Duration timeout);

  // Dispatcher
  void Submit(GenerationSpec spec, std::shared_ptr<GenerationSink> sink) override;
  void Cancel(RequestId id) override;
  void Stop(RequestId id) override;
  ClusterSnapshot Snapshot() const override;
  std::string NotReadyReason() const override;

  // "" while the dispatcher ticks, and once stopped; else what is wrong. Any thread.
  std::string NotLiveReason() const;

  // FleetListener
  void OnWorkerEvent(SessionId session, Event event) override;

 private:
  using Submission = std::pair<GenerationSpec, std::shared_ptr<GenerationSink>>;
  using Refused = std::pair<RequestApi, std::shared_ptr<GenerationSink>>;
  struct Mailbox {
    std::vector<Submission> submissions;
    std::vector<Refused> refused;
    absl::flat_hash_map<RequestId, bool> cancels;  // value: RequestCancelled::satisfied
    std::vector<std::pair<SessionId, Event>> worker_events;
    bool drain = false;
    bool stop = false;
    bool empty() const {
      return submissions.empty() && refused.empty() && cancels.empty() && worker_events.empty() &&
             !drain && !stop;
    }
  };

  using Sinks = std::vector<std::shared_ptr<GenerationSink>>;

  void PostCancel(RequestId id, bool satisfied);
  void Run();
  // For the dispatcher's own thread: sleeps until it has the turn.
  Mailbox AwaitTurn();
  // For others: false when the turn is not free.
  bool TryBeginTurnLocked(Mailbox* mail) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsIdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopped_ || (!busy_ && mailbox_.empty());
  }
  // "" when the last tick is younger than `limit`.
  std::string StandstillReasonLocked(absl::Duration limit) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The mail is for the dispatcher's own thread. True: to be woken up once mu_ is free, so that it
  // does not run into it.
  [[nodiscard]] bool CallThreadLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Serves `mail`, gives the turn back and flushes the sinks.
  void ServeTurn(Mailbox mail);
  // Gives the turn back; returns the sinks to flush.
  Sinks EndTurn(absl::Time now);
  static void Flush(const Sinks& sinks);
  // ---- With the turn.
  void NoticeStall(absl::Time now);
  void RunTimers(absl::Time now);
  void HandleMail(Mailbox mail, absl::Time now);
  void Step(Event event, absl::Time now);
  // The same of an event that may let the core choose workers; measures that.
  void StepAndMeasure(Event event, absl::Time now);
  void CarryOutActions();
  void PostTouched();
  void Accept(Submission submission, absl::Time now);
  void EndAll(absl::Time now);
  void Publish(absl::Time now);

  // Constant after construction.
  const DispatcherOptions options_;
  DispatcherObserver* const observer_;
  const absl::Time started_at_;

  // Owned by whoever has the turn.
  RouterCore core_;
  FleetPort* port_ = nullptr;
  absl::flat_hash_map<RequestId, std::shared_ptr<GenerationSink>> sinks_;
  std::vector<Action> actions_;  // of the step being carried out; kept for its memory
  Sinks touched_;                // heard something in this turn
  bool readiness_changed_ = false;
  absl::Time last_turn_ = absl::InfiniteFuture();
  absl::Time last_tick_;
  absl::Time next_tick_ = absl::InfiniteFuture();

  std::thread thread_;

  std::atomic<int> num_queued_{0};
  std::atomic<int> num_running_{0};

  mutable absl::Mutex mu_;
  Mailbox mailbox_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;  // or about to
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  bool busy_ ABSL_GUARDED_BY(mu_) = false;       // mail is in somebody's hand, or requests run
  bool turn_taken_ ABSL_GUARDED_BY(mu_) = true;  // free once the thread runs
  bool thread_is_next_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time timer_due_ ABSL_GUARDED_BY(mu_);     // of the core, or the next tick
  absl::Time sleeps_until_ ABSL_GUARDED_BY(mu_);  // the thread, unless wake_ is signalled
  MonotonicCondVar wake_, idle_;
  std::shared_ptr<const ClusterSnapshot> snapshot_ ABSL_GUARDED_BY(mu_);
  absl::Time snapshot_at_ ABSL_GUARDED_BY(mu_);
  absl::Time ticked_at_ ABSL_GUARDED_BY(mu_);  // last, in a turn that has ended
  std::string not_ready_reason_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sluice::router
