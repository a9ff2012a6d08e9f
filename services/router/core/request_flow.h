// One request from Submit to its end: reserve, prefill, handoff, tokens, and another attempt when
// something on the way fails. A state machine: each method is one event, answers come as actions in
// FlowContext, time is given. No threads, no clock, no locks; RouterCore owns the flows.
//
// Phases of an attempt (a worker of role `both` goes from kPrefill to kDecode directly):
//
//   kQueued -> kReserving -> kPrefill -> kTransfer -> kDecodeQueue -> kDecode -> ended
//                 |  ^                                 (any failure, loss or preemption)
//                 v  |                                            |
//               kWaiting  <---------------------------------------+
//
// Invariants:
//   1. A leg (decode_, prefill_) is set exactly while that worker may hold something of the current
//      attempt. Whoever drops a leg that the worker has not ended itself sends it Cancel.
//   2. Tokens reach the client through journal_ only, so each index goes out once and in order,
//      whatever the number of attempts.
//   3. Each phase but kPrefill..kDecode has a timer of its own; all have the request's deadline.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/block_hash.h"
#include "services/router/core/admission_rate.h"
#include "services/router/core/core_counters.h"
#include "services/router/core/core_options.h"
#include "services/router/core/journal.h"
#include "services/router/core/membership.h"
#include "services/router/core/messages.h"
#include "services/router/core/policy.h"
#include "services/router/core/prefix_index.h"
#include "services/router/core/retry_budget.h"
#include "services/router/core/waiting_lines.h"

namespace sluice::router {

// What a flow uses of the core while it handles one event.
struct FlowContext {
  const CoreOptions& options;
  Membership& membership;
  const PrefixIndex& prefixes;
  RetryBudget& retries;
  const AdmissionRate& admissions;
  int num_running;
  int num_queued;
  const absl::Time& could_serve_at;  // when no role was last seen missing
  CoreCounters& counters;
  std::vector<Action>& actions;
  absl::Time now;
};

class RequestFlow {
 public:
  enum class Phase {
    kQueued,       // waiting for a place among the running requests
    kWaiting,      // no worker can take it now: tried again at retry_at_, or as waits_for() says
    kReserving,    // Reserve sent
    kPrefill,      // Prefill or Run sent
    kTransfer,     // first token seen, KV on its way
    kDecodeQueue,  // the decode worker has all KV
    kDecode,       // and has sent a token
    kEnded,
  };

  // `deadline` is absolute; InfiniteFuture: none.
  RequestFlow(GenerationSpec spec, const CoreOptions& options, absl::Time now);

  // A role is missing: OnTimer decides anew when that is given up. REQUIRES: queued.
  void WaitForRole(absl::Time gives_up_at) {
    phase_deadline_ = std::min(queued_until_, gives_up_at);
  }
  // Leaves the queue and plans the first attempt.
  void Admit(const FlowContext& ctx);

  // Messages of workers. Those that do not belong to the current attempt are counted and dropped.
  void OnGranted(const FlowContext& ctx, const Granted& event);
  void OnBusy(const FlowContext& ctx, const AnsweredBusy& event);
  void OnToken(const FlowContext& ctx, SessionId session, ProducedToken token);
  void OnAttemptEnded(const FlowContext& ctx, const AttemptEnded& event);
  void OnPreempted(const FlowContext& ctx, const AttemptPreempted& event);
  void OnKvArrived(const FlowContext& ctx, const KvArrived& event);
  // A worker is no longer a member; the membership still knows its name.
  void OnWorkerLost(const FlowContext& ctx, SessionId session, const std::string& reason);

  // The retry budget has a place for it. REQUIRES: it stood in line.
  void OnRetryPlace(const FlowContext& ctx) { Plan(ctx); }
  // No role is missing any more. REQUIRES: waits_for() == WaitsFor::kRole.
  void OnRoleBack(const FlowContext& ctx) { Plan(ctx); }
  // The worker may have room now: asks it and nobody else, and if it refuses waits on as it did.
  // REQUIRES: waits_for() == WaitsFor::kRoom.
  void OnRoom(const FlowContext& ctx, SessionId session);

  // `satisfied`: the front met a stop string, and the request ends well.
  void Cancel(const FlowContext& ctx, bool satisfied);
  // REQUIRES: next_timer() <= ctx.now.
  void OnTimer(const FlowContext& ctx);
  // Ends with this status now, freeing everything at workers.
  void Fail(const FlowContext& ctx, absl::Status status, RejectReason reject = RejectReason::kNone);

  Phase phase() const { return phase_; }
  bool ended() const { return phase_ == Phase::kEnded; }
  absl::Time next_timer() const;
  // From when new requests leave it the room it seeks, if it was told last that there is none;
  // InfiniteFuture: never. At once if its client waits in the middle of the answer. A missing role
  // or a Reserve that nobody answers is no want of room.
  absl::Time has_precedence_at(absl::Duration starvation_patience) const {
    const bool seeks = phase_ == Phase::kWaiting || phase_ == Phase::kReserving;
    if (!seeks || refusal_ == Refusal::kNone) return absl::InfiniteFuture();
    return no_room_since_ + (has_begun() ? absl::ZeroDuration() : starvation_patience);
  }
  WaitsFor waits_for() const { return phase_ == Phase::kWaiting ? waits_for_ : WaitsFor::kTime; }
  // When it began to wait for that; says nothing of WaitsFor::kTime.
  absl::Time waiting_since() const {
    return waits_for_ == WaitsFor::kRoom ? no_room_since_ : no_worker_since_;
  }
  bool Involves(SessionId session) const;
  bool has_begun() const { return journal_.size() > 0; }  // its client has tokens
  RequestId id() const { return spec_.id; }
  int num_prompt_tokens() const { return static_cast<int>(spec_.prompt.size()); }

 private:
  struct Leg {
    SessionId session;
    std::string worker_id;
    int64_t prefill_tokens = 0;  // counted in the membership until the first token
    int64_t blocks = 0;          // promised there until the worker's next report
  };
  enum class LegKind { kDecode, kPrefill };

  // -- Planning (request_flow_plan.cc)
  // Chooses workers and sends Reserve or Run; or waits, or gives up.
  void Plan(const FlowContext& ctx);
  void WaitForWorkers(const FlowContext& ctx, NoRoute why);
  void GiveUpWaiting(const FlowContext& ctx, NoRoute why, absl::Duration waited);
  void ForgetWaiting();
  // Leaves the worker out until the next round of tries.
  void ExcludeFailed(SessionId session) {
    excluded_.push_back(session);
    failed_in_round_ = true;
  }
  // The end of its time in the queue, or of that without a role.
  void OnQueueTimer(const FlowContext& ctx);
  void SendPrefillTo(const FlowContext& ctx, const Grant& grant);
  SequenceStart MakeSequence(const FlowContext& ctx) const;
  PrefixMatch MatchPrefixes(const ClusterView& view, const WorkerInfo& decode,
                            const PrefixIndex& prefixes) const;
  int num_tokens() const { return num_prompt_tokens() + journal_.size(); }
  void SetLeg(const FlowContext& ctx, LegKind kind, const WorkerView& worker,
              int64_t prefill_tokens);

  // -- Ending and starting over
  // Forgets a leg; `cancel`: the worker has not ended it by itself.
  void DropLeg(const FlowContext& ctx, LegKind kind, bool cancel, const std::string& reason = "");
  void DropLegs(const FlowContext& ctx, const std::string& reason);
  // The current attempt is over for a reason that another attempt may cure.
  void EndAttempt(const FlowContext& ctx, const std::string& reason);
  void RetryAfterFailure(const FlowContext& ctx, Stage stage, RetryReason reason,
                         absl::Status status);
  // If the answer is complete though its last worker could not say so, ends it; true then.
  bool FinishIfComplete(const FlowContext& ctx);
  void FinishWhenDelivered(const FlowContext& ctx);
  void Finish(const FlowContext& ctx, GenerationResult result,
              RejectReason reject = RejectReason::kNone);

  bool IsCurrent(const FlowContext& ctx, SessionId session, Attempt attempt) const;
  bool IsLeg(LegKind kind, SessionId session) const;
  std::optional<Leg>& leg(LegKind kind) { return kind == LegKind::kDecode ? decode_ : prefill_; }
  Stage CurrentStage() const;
  // REQUIRES: Prefill or Run was sent.
  void UpdatePhase();
  // The decode worker has the KV.
  void OnTransferred(const FlowContext& ctx);
  void RecordFirstToken(const FlowContext& ctx, const ProducedToken& token);
  void RecordSecondToken(const FlowContext& ctx, const ProducedToken& token);

  // Constant after construction.
  const GenerationSpec spec_;
  const absl::Time submitted_at_;
  const absl::Time deadline_;
  const absl::Time queued_until_;

  Phase phase_ = Phase::kQueued;
  Journal journal_;

  // Current attempt.
  Attempt attempt_{1};
  std::optional<Leg> decode_;  // also of a worker of role `both`
  std::optional<Leg> prefill_;
  bool colocated_ = false;
  int base_index_ = 0;  // index of its first token
  bool first_token_seen_ = false;
  bool kv_arrived_ = false;  // said so, or has sent a token
  bool decode_token_seen_ = false;
  // What the decode worker said, while the prefill worker's first token is still on its way.
  std::optional<AttemptEndReason> end_reason_;

  // Over all attempts.
  std::vector<SessionId> excluded_;     // answered Busy in this round, or failed
  bool failed_in_round_ = false;        // one of them failed
  std::optional<SessionId> kv_holder_;  // decode worker of the attempt before this one
  int lost_workers_ = 0;
  bool starts_anew_ = false;  // an attempt after the first, until its first token
  // The latest failure in the middle of the answer, until its next token.
  std::optional<absl::Time> failed_at_;
  int failures_ = 0;
  int preemptions_ = 0;
  // Of the latest attempt's decode worker, which ends the answer there. A prefill worker only has
  // to hold what there is when it starts.
  int max_model_len_ = 0;

  // Timers of the phase; InfiniteFuture: off.
  absl::Time retry_at_ = absl::InfiniteFuture();
  absl::Time phase_deadline_ = absl::InfiniteFuture();
  absl::Time gap_deadline_ = absl::InfiniteFuture();
  // From when kWaiting counts its time, one for each cause; InfiniteFuture: from now on. Each is
  // forgotten when a worker has taken the request up.
  absl::Time no_room_since_ = absl::InfiniteFuture();
  absl::Time no_worker_since_ = absl::InfiniteFuture();  // and when a worker can be chosen
  WaitsFor waits_for_ = WaitsFor::kTime;
  // From OnRoom to the worker's answer.
  struct Chance {
    SessionId session;    // nobody else is asked
    absl::Time retry_at;  // if it refuses: the timer as it was
  };
  std::optional<Chance> chance_;
  // What it heard last from a worker it asked: Reserve was answered Busy, or work that was sent
  // came back because a queue was full.
  enum class Refusal { kNone, kBusy, kQueueFull };
  Refusal refusal_ = Refusal::kNone;
  absl::Time yields_at_ = absl::InfiniteFuture();  // when that is forgotten, for want of an answer
  absl::Duration retry_pause_;
  absl::Duration busy_retry_after_;  // the longest one asked for in this round

  // For results and metrics.
  absl::Time admitted_at_, sent_at_;
  absl::Time last_emit_at_;  // or of Submit
  int cached_tokens_ = 0;
  std::optional<double> prefix_match_ratio_;
  std::optional<absl::Time> first_token_at_;  // of the answer
  absl::Duration exposed_transfer_;           // of the latest attempt whose KV arrived
  TimeStages stages_;
};

}  // namespace sluice::router
