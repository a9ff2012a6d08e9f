#include "services/router/core/request_flow.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/core/mutants.h"

namespace sluice::router {
namespace {

const char* StageName(Stage stage) { return kStageNames[static_cast<int>(stage)]; }

Stage ParseStage(const std::string& name, Stage fallback) {
  for (int i = 0; i < static_cast<int>(Stage::kNumStages); ++i) {
    if (name == kStageNames[i]) return static_cast<Stage>(i);
  }
  return fallback;
}

// Whether the same request could fare better on another worker.
bool IsCurable(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return false;
    default:
      return true;
  }
}

}  // namespace

RequestFlow::RequestFlow(GenerationSpec spec, const CoreOptions& options, absl::Time now)
    : spec_(std::move(spec)),
      submitted_at_(std::min(now, spec_.submitted_at)),
      deadline_(std::min(spec_.deadline, now + options.request_timeout)),
      queued_until_(now + options.queue_timeout),
      journal_(options.max_held_tokens),
      phase_deadline_(queued_until_),
      last_emit_at_(now) {}

void RequestFlow::Admit(const FlowContext& ctx) {
  admitted_at_ = ctx.now;
  stages_[time_stage::kAdmission] = ctx.now - submitted_at_;
  Plan(ctx);
}

void RequestFlow::OnGranted(const FlowContext& ctx, const Granted& event) {
  const bool stale = event.key.attempt != attempt_;
  if (stale || phase_ != Phase::kReserving || !IsLeg(LegKind::kDecode, event.session)) {
    ctx.counters.CountStale(stale ? StaleReason::kStaleAttempt : StaleReason::kWrongWorker);
    // Whoever gave up on this grant has sent Cancel; should a worker have missed it, its blocks
    // would stay reserved until the lease ends.
    if (stale) ctx.actions.push_back(SendCancel{event.session, event.key, "stale grant"});
    return;
  }
  if (event.grant.cached_tokens > num_tokens()) {
    // A prefill worker would ignore an order with such a grant, and nobody would end the attempt.
    ExcludeFailed(event.session);
    RetryAfterFailure(
        ctx, Stage::kReserve, RetryReason::kFailed,
        absl::InternalError(absl::StrCat("decode worker ", decode_->worker_id, " granted ",
                                         event.grant.cached_tokens, " cached tokens of ",
                                         num_tokens(), " (stage reserve)")));
    return;
  }
  chance_.reset();
  SendPrefillTo(ctx, event.grant);
}

void RequestFlow::OnBusy(const FlowContext& ctx, const AnsweredBusy& event) {
  if (!IsCurrent(ctx, event.session, event.key.attempt)) return;
  if (phase_ != Phase::kReserving || !IsLeg(LegKind::kDecode, event.session)) {
    ctx.counters.CountStale(StaleReason::kWrongWorker);
    return;
  }
  busy_retry_after_ = std::max(busy_retry_after_, event.retry_after);
  refusal_ = Refusal::kBusy;
  excluded_.push_back(event.session);
  // After a report in between this takes away from others' promises, until the next one.
  ctx.membership.AddAssigned(event.session, 0, 0, -decode_->blocks);
  DropLeg(ctx, LegKind::kDecode, /*cancel=*/false);
  Plan(ctx);
}

void RequestFlow::OnToken(const FlowContext& ctx, SessionId session, ProducedToken token) {
  if (!IsCurrent(ctx, session, token.key.attempt)) return;
  if (phase_ == Phase::kReserving) {
    ctx.counters.CountStale(StaleReason::kWrongWorker);
    return;
  }
  const bool from_decode = IsLeg(LegKind::kDecode, session);
  const bool is_first = token.index == base_index_ && !first_token_seen_;
  const bool first_of_request = journal_.size() == 0;
  TokenList ready;
  const Journal::Outcome outcome = token.index >= spec_.sampling.max_tokens
                                       ? Journal::Outcome::kTooFar
                                       : journal_.Take(token.index, std::move(token.token), &ready);
  if (outcome == Journal::Outcome::kDuplicate) {
    ctx.counters.CountStale(StaleReason::kDuplicateToken);
    return;
  }
  if (outcome == Journal::Outcome::kTooFar) {
    RetryAfterFailure(ctx, CurrentStage(), RetryReason::kFailed,
                      absl::InternalError(absl::StrCat("worker sent token ", token.index, " when ",
                                                       journal_.size(), " was next (stage ",
                                                       StageName(CurrentStage()), ")")));
    return;
  }
  if (is_first) {
    first_token_seen_ = true;
    RecordFirstToken(ctx, token);
  }
  if (from_decode && !colocated_ && !decode_token_seen_) {
    decode_token_seen_ = true;
    OnTransferred(ctx);
    failures_ = 0;  // they bound the tries of one handoff, not what a long answer may live through
    RecordSecondToken(ctx, token);
  }
  UpdatePhase();
  if (outcome == Journal::Outcome::kHeld) {
    gap_deadline_ = std::min(gap_deadline_, ctx.now + ctx.options.first_token_gap_timeout);
    return;
  }
  if (!journal_.has_gap()) gap_deadline_ = absl::InfiniteFuture();
  EmitTokens emit{spec_.id, std::move(ready), first_of_request, ctx.now - last_emit_at_,
                  /*since_failure=*/std::nullopt};
  if (failed_at_.has_value()) emit.since_failure = ctx.now - *failed_at_;
  failed_at_.reset();
  ctx.actions.push_back(std::move(emit));
  last_emit_at_ = ctx.now;
  if (end_reason_.has_value()) FinishWhenDelivered(ctx);
}

void RequestFlow::OnKvArrived(const FlowContext& ctx, const KvArrived& event) {
  if (!IsCurrent(ctx, event.session, event.key.attempt)) return;
  if (colocated_ || kv_arrived_ || phase_ == Phase::kReserving ||
      !IsLeg(LegKind::kDecode, event.session)) {
    ctx.counters.CountStale(StaleReason::kWrongWorker);
    return;
  }
  OnTransferred(ctx);
  exposed_transfer_ = event.exposed_transfer;
  UpdatePhase();
}

void RequestFlow::OnTransferred(const FlowContext& ctx) {
  if (std::exchange(kv_arrived_, true)) return;  // that was then
  if (prefill_.has_value()) {
    ctx.membership.TransferArrived({prefill_->session, decode_->session});
  }
}

void RequestFlow::OnPreempted(const FlowContext& ctx, const AttemptPreempted& event) {
  if (!IsCurrent(ctx, event.session, event.key.attempt)) return;
  if (phase_ == Phase::kReserving || !IsLeg(LegKind::kDecode, event.session)) {
    ctx.counters.CountStale(StaleReason::kWrongWorker);
    return;
  }
  const std::string worker_id = decode_->worker_id;
  DropLeg(ctx, LegKind::kDecode, /*cancel=*/false);
  if (FinishIfComplete(ctx)) return;
  if (++preemptions_ > ctx.options.max_preemptions) {
    Fail(ctx,
         absl::ResourceExhaustedError(absl::StrCat("decode worker ", worker_id,
                                                   " ran out of KV blocks; the request was "
                                                   "preempted ",
                                                   preemptions_, " times (stage decode)")),
         RejectReason::kKvExhausted);
    return;
  }
  ctx.counters.CountRetry(Stage::kDecode, RetryReason::kPreempted);
  ForgetWaiting();
  starts_anew_ = true;
  EndAttempt(ctx, "preempted");
  Plan(ctx);
}

void RequestFlow::OnAttemptEnded(const FlowContext& ctx, const AttemptEnded& event) {
  const bool is_answer_to_cancel =
      event.reason == AttemptEndReason::kCancelled || event.reason == AttemptEndReason::kHandedOver;
  if (event.key.attempt != attempt_ && is_answer_to_cancel) return;
  if (!IsCurrent(ctx, event.session, event.key.attempt)) return;
  const LegKind kind =
      IsLeg(LegKind::kDecode, event.session) ? LegKind::kDecode : LegKind::kPrefill;
  const std::string who = absl::StrCat(colocated_                 ? ""
                                       : kind == LegKind::kDecode ? "decode "
                                                                  : "prefill ",
                                       "worker ", leg(kind)->worker_id);
  const Stage stage = ParseStage(event.stage, CurrentStage());
  DropLeg(ctx, kind, /*cancel=*/false);
  if (kind == LegKind::kPrefill && first_token_seen_ && kv_arrived_) {
    return;  // its part was done, whatever it says
  }
  if (event.reason == AttemptEndReason::kFailed && stage == Stage::kKvTransfer) {
    // Either end may be at fault, most often the silent one: the next attempt avoids both.
    const std::optional<Leg>& peer =
        leg(kind == LegKind::kDecode ? LegKind::kPrefill : LegKind::kDecode);
    if (peer.has_value()) {
      ExcludeFailed(peer->session);
      // Of the way between them, not of what either could not do.
      const bool of_link =
          absl::IsUnavailable(event.status) || absl::IsDeadlineExceeded(event.status);
      const KvLink link = kind == LegKind::kDecode ? KvLink{peer->session, event.session}
                                                   : KvLink{event.session, peer->session};
      if (of_link) ctx.membership.TransferFailed(link, ctx.now);
    }
  }

  switch (event.reason) {
    case AttemptEndReason::kStop:
    case AttemptEndReason::kLength:
      end_reason_ = event.reason;
      if (kind == LegKind::kPrefill) {
        // The answer ends with its first token; there is nothing to decode.
        DropLeg(ctx, LegKind::kDecode, /*cancel=*/true, "ended at the first token");
      } else {
        kv_arrived_ = true;
      }
      FinishWhenDelivered(ctx);
      return;
    case AttemptEndReason::kHandedOver:
      if (kind == LegKind::kPrefill && decode_.has_value()) {
        ctx.membership.TransferArrived({event.session, decode_->session});
      }
      if (kind == LegKind::kPrefill && first_token_seen_) return;
      ExcludeFailed(event.session);
      RetryAfterFailure(ctx, stage, RetryReason::kFailed,
                        absl::InternalError(absl::StrCat(
                            who, " handed over without a first token (stage prefill)")));
      return;
    case AttemptEndReason::kCancelled:
      ExcludeFailed(event.session);
      RetryAfterFailure(ctx, stage, RetryReason::kFailed,
                        absl::AbortedError(absl::StrCat(who, " gave the request up (stage ",
                                                        StageName(stage), ")")));
      return;
    case AttemptEndReason::kFailed: {
      if (event.status.code() == absl::StatusCode::kResourceExhausted && !first_token_seen_) {
        // Its queue or pool is full: no failure, try another or wait.
        chance_.reset();
        excluded_.push_back(event.session);
        refusal_ = Refusal::kQueueFull;
        EndAttempt(ctx, "worker is full");
        Plan(ctx);
        return;
      }
      ExcludeFailed(event.session);
      // The codes are of what happened between the router and its workers. To the client they would
      // mean something else: that it left (CANCELLED), that there is no room (UNAVAILABLE).
      const absl::StatusCode code =
          IsCurable(event.status) ? absl::StatusCode::kInternal : event.status.code();
      RetryAfterFailure(ctx, stage, RetryReason::kFailed,
                        absl::Status(code, absl::StrCat(who, ": ", event.status.message(),
                                                        " (stage ", StageName(stage), ")")));
      return;
    }
  }
}

void RequestFlow::OnWorkerLost(const FlowContext& ctx, SessionId session,
                               const std::string& reason) {
  if (!Involves(session)) return;
  const Stage stage = CurrentStage();
  const bool is_decode = IsLeg(LegKind::kDecode, session);
  const LegKind kind = is_decode ? LegKind::kDecode : LegKind::kPrefill;
  const std::string what = absl::StrCat(colocated_  ? ""
                                        : is_decode ? "decode "
                                                    : "prefill ",
                                        "worker ", leg(kind)->worker_id, " was lost (stage ",
                                        StageName(stage), "): ", reason);
  DropLeg(ctx, kind, /*cancel=*/false);
  if (!is_decode && first_token_seen_ && kv_arrived_) return;  // it had done its part
  RetryAfterFailure(ctx, stage, RetryReason::kWorkerLost, absl::InternalError(what));
}

void RequestFlow::Cancel(const FlowContext& ctx, bool satisfied) {
  DropLegs(ctx, satisfied ? "stopped by the front" : "cancelled by the client");
  GenerationResult result;
  if (satisfied) {
    result.end = GenerationEnd::kStop;
  } else {
    result.end = GenerationEnd::kCancelled;
    result.status = absl::CancelledError("cancelled by the client");
  }
  Finish(ctx, std::move(result));
}

void RequestFlow::OnTimer(const FlowContext& ctx) {
  if (ctx.now >= deadline_) {
    const Stage stage = CurrentStage();
    const std::string where =
        decode_.has_value() ? absl::StrCat(" on worker ", decode_->worker_id) : "";
    Fail(ctx,
         absl::DeadlineExceededError(absl::StrCat(
             "the request's deadline passed after ", absl::FormatDuration(ctx.now - submitted_at_),
             where, " (stage ", StageName(stage), ", ", journal_.size(), " tokens sent)")));
    return;
  }
  if (phase_ == Phase::kQueued && ctx.now >= phase_deadline_) {
    OnQueueTimer(ctx);
  } else if (phase_ == Phase::kWaiting && ctx.now >= retry_at_) {
    Plan(ctx);
  } else if (phase_ == Phase::kReserving && ctx.now >= phase_deadline_) {
    const absl::Status status = absl::InternalError(
        absl::StrCat("decode worker ", decode_->worker_id, " did not answer Reserve within ",
                     absl::FormatDuration(ctx.options.reserve_timeout), " (stage reserve)"));
    ExcludeFailed(decode_->session);
    RetryAfterFailure(ctx, Stage::kReserve, RetryReason::kTimeout, status);
  } else if (phase_ == Phase::kReserving && ctx.now >= yields_at_) {
    refusal_ = Refusal::kNone;
    yields_at_ = absl::InfiniteFuture();
  } else if (ctx.now >= gap_deadline_) {
    RetryAfterFailure(
        ctx, Stage::kPrefill, RetryReason::kTimeout,
        absl::InternalError(absl::StrCat("token ", journal_.size(), " did not arrive within ",
                                         absl::FormatDuration(ctx.options.first_token_gap_timeout),
                                         " of a later one (stage prefill)")));
  }
}

absl::Time RequestFlow::next_timer() const {
  if (ended()) return absl::InfiniteFuture();
  return std::min({deadline_, phase_deadline_, retry_at_, yields_at_, gap_deadline_});
}

bool RequestFlow::Involves(SessionId session) const {
  return IsLeg(LegKind::kDecode, session) || IsLeg(LegKind::kPrefill, session);
}

void RequestFlow::Fail(const FlowContext& ctx, absl::Status status, RejectReason reject) {
  DropLegs(ctx, std::string(status.message()));
  GenerationResult result;
  result.end = GenerationEnd::kFailed;
  if (has_begun()) {
    reject = RejectReason::kNone;  // no refusal, whatever is missing: its client has tokens
  } else if (status.code() == absl::StatusCode::kResourceExhausted) {
    result.retry_after = ctx.admissions.TimeToAdmit(ctx.num_queued + 1, ctx.now);
  }
  result.status = std::move(status);
  Finish(ctx, std::move(result), reject);
}

void RequestFlow::DropLeg(const FlowContext& ctx, LegKind kind, bool cancel,
                          const std::string& reason) {
  std::optional<Leg>& dropped = leg(kind);
  if (!dropped.has_value()) return;
  if (!Planted(RouterMutant::kKeepAssigned)) {
    ctx.membership.AddAssigned(dropped->session, -1, -dropped->prefill_tokens, 0);
  }
  if (cancel && !Planted(RouterMutant::kForgetCancel)) {
    ctx.actions.push_back(SendCancel{dropped->session, {spec_.id, attempt_}, reason});
  }
  dropped.reset();
}

void RequestFlow::DropLegs(const FlowContext& ctx, const std::string& reason) {
  DropLeg(ctx, LegKind::kPrefill, /*cancel=*/true, reason);
  DropLeg(ctx, LegKind::kDecode, /*cancel=*/true, reason);
}

void RequestFlow::EndAttempt(const FlowContext& ctx, const std::string& reason) {
  DropLegs(ctx, reason);
  journal_.DropHeld();
  if (!Planted(RouterMutant::kKeepAttempt)) ++attempt_.value;
}

void RequestFlow::RetryAfterFailure(const FlowContext& ctx, Stage stage, RetryReason reason,
                                    absl::Status status) {
  if (FinishIfComplete(ctx)) return;
  chance_.reset();
  if (phase_ == Phase::kReserving) {
    refusal_ = Refusal::kNone;
  } else {
    ForgetWaiting();
  }
  const bool lost = reason == RetryReason::kWorkerLost;
  ++(lost ? lost_workers_ : failures_);
  if (!ctx.options.recovery || !IsCurable(status)) {
    Fail(ctx, std::move(status));
    return;
  }
  if (lost_workers_ >= ctx.options.max_lost_workers || failures_ >= ctx.options.max_failures) {
    Fail(ctx, absl::Status(status.code(),
                           absl::StrCat("gave up after ", lost_workers_, " lost workers and ",
                                        failures_, " failures: ", status.message())));
    return;
  }
  ctx.counters.CountRetry(stage, reason);
  if (has_begun()) failed_at_ = ctx.now;
  if (decode_.has_value()) kv_holder_ = decode_->session;
  starts_anew_ = true;
  EndAttempt(ctx, std::string(status.message()));
  Plan(ctx);
}

bool RequestFlow::FinishIfComplete(const FlowContext& ctx) {
  if (journal_.size() == 0) return false;
  const std::vector<TokenId>& stops = spec_.sampling.stop_token_ids;
  GenerationResult result;
  if (std::find(stops.begin(), stops.end(), journal_.tokens().back()) != stops.end()) {
    result.end = GenerationEnd::kStop;
  } else if (journal_.size() >= spec_.sampling.max_tokens || num_tokens() >= max_model_len_) {
    result.end = GenerationEnd::kLength;
  } else {
    return false;
  }
  DropLegs(ctx, "the answer is complete");
  Finish(ctx, std::move(result));
  return true;
}

void RequestFlow::FinishWhenDelivered(const FlowContext& ctx) {
  if (!first_token_seen_ && prefill_.has_value() && !Planted(RouterMutant::kFinishWithGap)) {
    gap_deadline_ = std::min(gap_deadline_, ctx.now + ctx.options.first_token_gap_timeout);
    return;
  }
  if ((!first_token_seen_ || journal_.has_gap()) && !Planted(RouterMutant::kFinishWithGap)) {
    RetryAfterFailure(
        ctx, Stage::kDecode, RetryReason::kFailed,
        absl::InternalError(absl::StrCat("the answer ended, but token ", journal_.size(),
                                         " never came (stage decode)")));
    return;
  }
  // The prefill worker hears of the end of the handoff from the decode worker.
  DropLeg(ctx, LegKind::kPrefill, /*cancel=*/!kv_arrived_, "ended");
  GenerationResult result;
  result.end =
      *end_reason_ == AttemptEndReason::kStop ? GenerationEnd::kStop : GenerationEnd::kLength;
  Finish(ctx, std::move(result));
}

void RequestFlow::Finish(const FlowContext& ctx, GenerationResult result, RejectReason reject) {
  phase_ = Phase::kEnded;
  ctx.retries.Release(spec_.id);
  if (reject != RejectReason::kNone) ctx.counters.CountRoute(RouteDecision::kRejected);
  result.cached_tokens = cached_tokens_;
  result.stages = std::move(stages_);
  EndRequest end{spec_.id,
                 std::move(result),
                 spec_.api,
                 reject,
                 ctx.now - submitted_at_,
                 num_prompt_tokens(),
                 journal_.size(),
                 /*time_per_output_token=*/std::nullopt,
                 prefix_match_ratio_};
  if (first_token_at_.has_value() && journal_.size() > 1) {
    end.time_per_output_token = (last_emit_at_ - *first_token_at_) / (journal_.size() - 1);
  }
  ctx.actions.push_back(std::move(end));
}

bool RequestFlow::IsCurrent(const FlowContext& ctx, SessionId session, Attempt attempt) const {
  if (attempt != attempt_) {
    ctx.counters.CountStale(StaleReason::kStaleAttempt);
    return false;
  }
  if (!Involves(session)) {
    ctx.counters.CountStale(StaleReason::kWrongWorker);
    return false;
  }
  return true;
}

bool RequestFlow::IsLeg(LegKind kind, SessionId session) const {
  const std::optional<Leg>& which = kind == LegKind::kDecode ? decode_ : prefill_;
  return which.has_value() && which->session == session;
}

Stage RequestFlow::CurrentStage() const {
  switch (phase_) {
    case Phase::kQueued:
      return Stage::kAdmission;
    case Phase::kWaiting:
    case Phase::kReserving:
      return Stage::kReserve;
    case Phase::kPrefill:
      return Stage::kPrefill;
    case Phase::kTransfer:
      return Stage::kKvTransfer;
    case Phase::kDecodeQueue:
    case Phase::kDecode:
    case Phase::kEnded:
      return Stage::kDecode;
  }
  return Stage::kDecode;
}

void RequestFlow::UpdatePhase() {
  if (!first_token_seen_) {
    phase_ = Phase::kPrefill;
  } else if (colocated_ || decode_token_seen_) {
    phase_ = Phase::kDecode;
  } else {
    phase_ = kv_arrived_ ? Phase::kDecodeQueue : Phase::kTransfer;
  }
}

void RequestFlow::RecordFirstToken(const FlowContext& ctx, const ProducedToken& token) {
  ForgetWaiting();
  excluded_.clear();
  failed_in_round_ = false;
  starts_anew_ = false;
  ctx.retries.Release(spec_.id);
  Leg& computed_by = colocated_ || !prefill_.has_value() ? *decode_ : *prefill_;
  ctx.membership.AddAssigned(computed_by.session, 0, -computed_by.prefill_tokens, 0);
  computed_by.prefill_tokens = 0;
  if (first_token_at_.has_value()) return;  // a later attempt
  first_token_at_ = ctx.now;
  // The four add up to the time to first token as seen here, whatever the clocks of others say; the
  // way to the worker and back is in prefill_queue.
  const absl::Duration elapsed = ctx.now - sent_at_;
  const absl::Duration compute =
      std::clamp(token.compute_time, absl::ZeroDuration(), std::max(elapsed, absl::ZeroDuration()));
  stages_[time_stage::kRoute] = sent_at_ - admitted_at_;
  stages_[time_stage::kPrefill] = compute;
  stages_[time_stage::kPrefillQueue] = elapsed - compute;
  cached_tokens_ = std::clamp(token.cached_tokens, 0, num_prompt_tokens());
  if (decode_token_seen_) {  // the second token overtook the first: the client waits for neither
    for (const char* stage :
         {time_stage::kKvTransfer, time_stage::kDecodeQueue, time_stage::kFirstStep}) {
      stages_[stage] = absl::ZeroDuration();
    }
  }
}

void RequestFlow::RecordSecondToken(const FlowContext& ctx, const ProducedToken& token) {
  if (!first_token_at_.has_value() || stages_.contains(time_stage::kFirstStep)) return;
  const absl::Duration none = absl::ZeroDuration();
  const absl::Duration elapsed = std::max(ctx.now - *first_token_at_, none);
  const absl::Duration transfer = std::clamp(exposed_transfer_, none, elapsed);
  const absl::Duration step = std::clamp(token.compute_time, none, elapsed - transfer);
  stages_[time_stage::kKvTransfer] = transfer;
  stages_[time_stage::kFirstStep] = step;
  stages_[time_stage::kDecodeQueue] = elapsed - transfer - step;
}

}  // namespace sluice::router
