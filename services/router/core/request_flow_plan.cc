// RequestFlow: choosing workers for an attempt and starting it there.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/core/mutants.h"
#include "services/router/core/request_flow.h"

namespace sluice::router {

void RequestFlow::Plan(const FlowContext& ctx) {
  retry_at_ = phase_deadline_ = yields_at_ = gap_deadline_ = absl::InfiniteFuture();
  base_index_ = journal_.size();
  first_token_seen_ = kv_arrived_ = decode_token_seen_ = false;
  end_reason_.reset();
  waits_for_ = WaitsFor::kTime;

  const ClusterView view = ctx.membership.View(ctx.now);
  RouteQuery query{num_tokens(), excluded_, kv_holder_, /*only_decode=*/std::nullopt};
  if (chance_.has_value()) query.only_decode = chance_->session;
  const DecodeChoice choice = ChooseDecodeWorker(view, query);
  if (choice.worker != nullptr || choice.none == NoRoute::kAllExcluded) {
    no_worker_since_ = absl::InfiniteFuture();
  }
  if (choice.worker == nullptr) {
    WaitForWorkers(ctx, choice.none);
    return;
  }
  if (starts_anew_ && !ctx.retries.Acquire(spec_.id, has_begun(), ctx.num_running, ctx.now)) {
    phase_ = Phase::kWaiting;  // until OnRetryPlace
    return;
  }
  max_model_len_ = choice.worker->max_model_len;
  colocated_ = choice.worker->role == WorkerRole::kBoth;
  if (colocated_) {
    chance_.reset();
    SetLeg(ctx, LegKind::kDecode, *choice.worker, num_tokens());
    sent_at_ = ctx.now;
    phase_ = Phase::kPrefill;
    ctx.counters.CountRoute(RouteDecision::kColocated);
    ctx.actions.push_back(SendRun{decode_->session, MakeSequence(ctx)});
  } else {
    SetLeg(ctx, LegKind::kDecode, *choice.worker, 0);
    phase_ = Phase::kReserving;
    phase_deadline_ = ctx.now + ctx.options.reserve_timeout;
    if (refusal_ != Refusal::kNone) yields_at_ = ctx.now + ctx.options.starvation_patience;
    ctx.actions.push_back(SendReserve{decode_->session, MakeSequence(ctx)});
  }
}

void RequestFlow::OnRoom(const FlowContext& ctx, SessionId session) {
  chance_ = Chance{session, retry_at_};
  Plan(ctx);
}

void RequestFlow::WaitForWorkers(const FlowContext& ctx, NoRoute why) {
  // Once there was a worker for this many tokens, so it is that worker that is missing.
  const bool fitted = num_tokens() < max_model_len_;
  if (why == NoRoute::kTooLong && !fitted) {
    Fail(ctx,
         absl::OutOfRangeError(absl::StrCat(
             "This model's maximum context length is ", ctx.membership.MaxModelLen(ctx.now),
             " tokens, but the request has ", num_tokens(), " before its next token")),
         RejectReason::kTooLong);
    return;
  }
  const bool busy = why == NoRoute::kAllExcluded;
  if (!busy) {
    ctx.retries.Release(spec_.id);  // whoever waits for a worker burdens none
    refusal_ = Refusal::kNone;
  }
  absl::Time& since = busy ? no_room_since_ : no_worker_since_;
  if (since == absl::InfiniteFuture()) {
    since = ctx.now;
    retry_pause_ = ctx.options.min_retry_pause;
  }
  const absl::Time give_up_at =
      since + (busy ? ctx.options.capacity_timeout : ctx.options.no_worker_timeout);
  if (ctx.now >= give_up_at) {
    GiveUpWaiting(ctx, why, ctx.now - since);
    return;
  }
  // Each failure makes it four times as long, so that a few of them outlast what will pass.
  const absl::Duration after_failures =
      failed_in_round_ ? ctx.options.min_retry_pause * std::pow(4, failures_ - 1)
                       : absl::ZeroDuration();
  const absl::Duration pause =
      std::clamp(std::max({retry_pause_, busy_retry_after_, after_failures}),
                 ctx.options.min_retry_pause, ctx.options.max_retry_pause);
  if (!chance_.has_value()) {
    retry_pause_ = std::min(2 * retry_pause_, ctx.options.max_retry_pause);
  }
  busy_retry_after_ = absl::ZeroDuration();
  phase_ = Phase::kWaiting;
  // A full queue or a failure is left alone for the pause: the grant that came before it would be
  // the next chance, and so on without one.
  waits_for_ = WaitsFor::kTime;
  if (why == NoRoute::kNoPrefill || why == NoRoute::kNoDecode) waits_for_ = WaitsFor::kRole;
  if (busy && refusal_ == Refusal::kBusy && !failed_in_round_) waits_for_ = WaitsFor::kRoom;
  if (failed_in_round_) refusal_ = Refusal::kNone;  // it sleeps: others may have the room meanwhile
  phase_deadline_ = yields_at_ = absl::InfiniteFuture();
  retry_at_ = std::min(chance_.has_value() ? chance_->retry_at : ctx.now + pause, give_up_at);
  chance_.reset();
  excluded_.clear();  // the next round asks everybody again
  failed_in_round_ = false;
}

void RequestFlow::GiveUpWaiting(const FlowContext& ctx, NoRoute why, absl::Duration waited) {
  const std::string time = absl::FormatDuration(waited);
  if (why == NoRoute::kAllExcluded) {
    Fail(ctx,
         absl::ResourceExhaustedError(absl::StrCat("no worker could take ", num_tokens(),
                                                   " tokens within ", time, " (stage reserve)")),
         RejectReason::kKvExhausted);
    return;
  }
  const bool no_prefill = why == NoRoute::kNoPrefill;
  const std::string missing =
      why == NoRoute::kTooLong
          ? absl::StrCat("worker with a context of more than ", num_tokens(), " tokens")
          : absl::StrCat(no_prefill ? "prefill" : "decode", " worker");
  Fail(
      ctx,
      absl::UnavailableError(absl::StrCat("no ready ", missing, " for ", time, " (stage reserve)")),
      no_prefill ? RejectReason::kNoPrefill : RejectReason::kNoDecode);
}

void RequestFlow::OnQueueTimer(const FlowContext& ctx) {
  const ClusterView view = ctx.membership.View(ctx.now);
  const std::string missing = MissingRole(view);
  const absl::Time role_given_up_at = ctx.could_serve_at + ctx.options.no_worker_timeout;
  if (!missing.empty() && ctx.now >= std::min(role_given_up_at, queued_until_)) {
    Fail(ctx, absl::UnavailableError(absl::StrCat(missing, " (stage admission)")),
         MissingRoleReason(view));
  } else if (ctx.now >= queued_until_) {
    Fail(ctx,
         absl::ResourceExhaustedError(absl::StrCat("queued for ",
                                                   absl::FormatDuration(ctx.now - submitted_at_),
                                                   " without a place (stage admission)")),
         RejectReason::kQueueTimeout);
  } else {  // the role has been there in between, and may be there now
    WaitForRole(missing.empty() ? queued_until_ : role_given_up_at);
  }
}

void RequestFlow::ForgetWaiting() {
  no_room_since_ = no_worker_since_ = absl::InfiniteFuture();
  refusal_ = Refusal::kNone;
}

void RequestFlow::SendPrefillTo(const FlowContext& ctx, const Grant& grant) {
  const WorkerInfo& decode = ctx.membership.Find(decode_->session)->info;
  const ClusterView view = ctx.membership.View(ctx.now);
  const PrefixMatch match = MatchPrefixes(view, decode, ctx.prefixes);
  const PrefillChoice choice =
      ChoosePrefillWorker(view, {num_tokens(), excluded_}, {decode_->session, decode.fingerprint},
                          match, ctx.options.default_prefill_tokens_per_second);
  if (choice.worker == nullptr) {
    // Decode blocks must not wait for a prefill worker: others could use them.
    EndAttempt(ctx, "no prefill worker");
    WaitForWorkers(ctx, choice.none);
    if (waits_for_ == WaitsFor::kRoom) waits_for_ = WaitsFor::kTime;  // it had that
    return;
  }
  const int64_t cached = int64_t{choice.matched_blocks} * choice.worker->kv_block_tokens;
  SetLeg(ctx, LegKind::kPrefill, *choice.worker, std::max<int64_t>(1, num_tokens() - cached));
  if (match != nullptr && !prefix_match_ratio_.has_value()) {
    prefix_match_ratio_ = std::min(1.0, static_cast<double>(cached) / num_tokens());
  }
  sent_at_ = ctx.now;
  phase_ = Phase::kPrefill;
  phase_deadline_ = yields_at_ = absl::InfiniteFuture();
  ctx.counters.CountRoute(RouteDecision::kDisaggregated);
  const std::string& kv_address = grant.kv_address.empty() ? decode.kv_address : grant.kv_address;
  ctx.actions.push_back(SendPrefill{prefill_->session, MakeSequence(ctx), grant, kv_address,
                                    decode.worker_id, decode.fingerprint});
}

SequenceStart RequestFlow::MakeSequence(const FlowContext& ctx) const {
  SequenceStart sequence;
  sequence.key = {spec_.id, attempt_};
  sequence.tokens.reserve(num_tokens());
  sequence.tokens = spec_.prompt;
  sequence.tokens.insert(sequence.tokens.end(), journal_.tokens().begin(), journal_.tokens().end());
  if (Planted(RouterMutant::kResumeWithoutLastToken) && journal_.size() > 0) {
    sequence.tokens.pop_back();
  }
  sequence.num_output_tokens = journal_.size();
  sequence.tenant_salt = spec_.tenant_salt;
  sequence.sampling = spec_.sampling;
  if (deadline_ != absl::InfiniteFuture()) {
    sequence.time_left = std::max(deadline_ - ctx.now, absl::ZeroDuration());
  }
  return sequence;
}

PrefixMatch RequestFlow::MatchPrefixes(const ClusterView& view, const WorkerInfo& decode,
                                       const PrefixIndex& prefixes) const {
  // Hashing a prompt is not free, and with one candidate it changes nothing.
  const auto is_candidate = [](const WorkerView& worker) {
    return worker.role == WorkerRole::kPrefill;
  };
  if (std::count_if(view.workers.begin(), view.workers.end(), is_candidate) < 2 ||
      decode.kv_block_tokens != kBlockTokens) {
    return nullptr;
  }
  std::vector<TokenId> tokens = spec_.prompt;
  tokens.insert(tokens.end(), journal_.tokens().begin(), journal_.tokens().end());
  return [&prefixes,
          chain = BlockHashChain(RootBlockHash(decode.fingerprint, spec_.tenant_salt), tokens)](
             const WorkerView& worker) { return prefixes.MatchedBlocks(worker.session, chain); };
}

void RequestFlow::SetLeg(const FlowContext& ctx, LegKind kind, const WorkerView& worker,
                         int64_t prefill_tokens) {
  const int64_t blocks = num_tokens() / std::max(1, worker.kv_block_tokens) + 1;
  leg(kind) = Leg{worker.session, worker.worker_id, prefill_tokens, blocks};
  ctx.membership.AddAssigned(worker.session, 1, prefill_tokens, blocks);
}

}  // namespace sluice::router
