// The router without I/O: admission, routing, recovery and membership as one state machine,
// Step(event, now) -> actions. It has no threads, clock, locks or sockets and is deterministic, so
// a simulation can drive it. In a running router the dispatcher thread owns it
// (services/router/fleet/dispatcher_thread.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "services/router/core/admission_rate.h"
#include "services/router/core/core_counters.h"
#include "services/router/core/core_options.h"
#include "services/router/core/dispatcher.h"
#include "services/router/core/membership.h"
#include "services/router/core/messages.h"
#include "services/router/core/prefix_index.h"
#include "services/router/core/request_flow.h"

namespace sluice::router {

class RouterCore {
 public:
  explicit RouterCore(CoreOptions options);
  RouterCore(const RouterCore&) = delete;
  RouterCore& operator=(const RouterCore&) = delete;

  // Handles one event; the actions are to be carried out in order. `now` must not go back.
  // REQUIRES: the id of a submitted request is not in use.
  std::vector<Action> Step(Event event, absl::Time now);
  // The same, appended to *actions: an owner that steps often keeps its memory.
  void Step(Event event, absl::Time now, std::vector<Action>* actions);

  // When Step(Tick) has something to do next, if nothing else happens.
  absl::Time NextTimer(absl::Time now) const;

  // "" when requests can be served now, else why not.
  std::string NotReadyReason(absl::Time now) const;
  ClusterSnapshot Snapshot(absl::Time now) const;

  int num_queued() const { return static_cast<int>(queue_.size()); }
  int num_running() const { return static_cast<int>(flows_.size() - queue_.size()); }
  // When a request that finds no place now may find one.
  absl::Duration RetryAfter(absl::Time now) const {
    return admissions_.TimeToAdmit(num_queued() + 1, now);
  }
  // Requests in each RequestFlow::Phase.
  std::vector<int> CountPhases() const;
  bool draining() const { return draining_; }
  const RetryBudget& retries() const { return retries_; }
  const CoreCounters& counters() const { return counters_; }
  const Membership& membership() const { return membership_; }

 private:
  struct Entry {
    std::unique_ptr<RequestFlow> flow;
    uint64_t ticket = 0;  // place in queue_; 0: not queued
    absl::Time timer = absl::InfiniteFuture();
    absl::Time has_precedence_at = absl::InfiniteFuture();
  };

  void Handle(const FlowContext& ctx, WorkerRegistered event);
  void Handle(const FlowContext& ctx, WorkerLeft event);
  void Handle(const FlowContext& ctx, LoadReported event);
  void Handle(const FlowContext& ctx, Granted event);
  void Handle(const FlowContext& ctx, AnsweredBusy event);
  void Handle(const FlowContext& ctx, TokensProduced event);
  void Handle(const FlowContext& ctx, AttemptEnded event);
  void Handle(const FlowContext& ctx, AttemptPreempted event);
  void Handle(const FlowContext& ctx, KvArrived event);
  void Handle(const FlowContext& ctx, RequestSubmitted event);
  void Handle(const FlowContext& ctx, RequestCancelled event);
  void Handle(const FlowContext& ctx, DrainStarted event);
  void Handle(const FlowContext& ctx, RouterResumed event);
  void Handle(const FlowContext& ctx, Tick event);

  // The entry of a worker's message; null, and counted, when the session or request is unknown.
  Entry* FindFor(const FlowContext& ctx, SessionId session, RequestId request);
  // Takes the worker out and tells every request it served.
  void RemoveWorker(const FlowContext& ctx, SessionId session, const std::string& reason,
                    MembershipEvent event);
  // Something happened that lets the worker have room for one more. Ignored: prefill workers, who
  // hold no answer's place, and who is no member.
  void NoteRoom(SessionId session);
  // Whether an admitted request seeks room that new ones must leave to it.
  bool IsAnyStarving(absl::Time now) const;
  // After what may have changed which workers are ready.
  void ReviewRoles(absl::Time now) { can_serve_ = membership_.HasEachRole(now); }
  // Plans anew who waits for a role that is back; and, if a worker may have room, lets the first of
  // those who wait for it ask that worker. One is asked for each event: a grant lets the next one
  // try, a refusal ends that until there may be room again.
  void ResumeWaiting(const FlowContext& ctx);
  // Lets queued requests run while there is room.
  void AdmitQueued(const FlowContext& ctx);
  // Lets requests start anew while the budget has places.
  void ResumeRetries(const FlowContext& ctx);
  // After anything was done to the flow: forgets it when it ended, else sets its timer. Invalidates
  // the entry when it ended.
  void Settle(RequestId id, Entry& entry);

  // Constant after construction.
  const CoreOptions options_;

  Membership membership_;
  PrefixIndex prefixes_;
  RetryBudget retries_;
  AdmissionRate admissions_;
  CoreCounters counters_;
  bool draining_ = false;
  bool can_serve_ = false;                            // no role was missing after the last event
  absl::Time could_serve_at_ = absl::InfinitePast();  // when no role was last seen missing

  // At most max_queued_requests + max_running_requests entries. Whoever acts on several takes them
  // in an order that does not come from here, so that the same events give the same actions.
  absl::flat_hash_map<RequestId, Entry> flows_;
  absl::btree_map<uint64_t, RequestId> queue_;  // by ticket: first come, first served
  uint64_t next_ticket_ = 1;
  absl::btree_set<std::pair<absl::Time, RequestId>> timers_;
  absl::btree_set<std::pair<absl::Time, RequestId>> starving_;  // by has_precedence_at
  WaitingLines waiting_;
  std::optional<SessionId> may_have_room_;  // freed something in this step, granted or reported
};

}  // namespace sluice::router
