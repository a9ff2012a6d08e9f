#include "services/router/core/router_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/core/mutants.h"

namespace sluice::router {
namespace {

// Requests that a worker with room cannot serve, its context being too short, do not keep it from
// those behind them, unless they are as many.
constexpr int kMaxPassedOver = 7;

}  // namespace

RouterCore::RouterCore(CoreOptions options)
    : options_(std::move(options)),
      membership_(options_),
      prefixes_(options_.max_prefix_blocks_per_worker),
      retries_(options_.max_retry_share, options_.max_retry_hold) {}

std::vector<Action> RouterCore::Step(Event event, absl::Time now) {
  std::vector<Action> actions;
  Step(std::move(event), now, &actions);
  return actions;
}

void RouterCore::Step(Event event, absl::Time now, std::vector<Action>* actions) {
  const FlowContext ctx{options_,    membership_,   prefixes_,    retries_,
                        admissions_, num_running(), num_queued(), could_serve_at_,
                        counters_,   *actions,      now};
  // A worker that falls silent does so at NextTimer, so until now nothing has changed.
  if (can_serve_) could_serve_at_ = now;
  std::visit([&](auto& e) { Handle(ctx, std::move(e)); }, event);
  ResumeWaiting(ctx);
  ResumeRetries(ctx);
  AdmitQueued(ctx);
}

absl::Time RouterCore::NextTimer(absl::Time now) const {
  const absl::Time next_flow = timers_.empty() ? absl::InfiniteFuture() : timers_.begin()->first;
  return std::min({next_flow, membership_.NextChange(now), retries_.NextChange()});
}

// ---- Workers

void RouterCore::Handle(const FlowContext& ctx, WorkerRegistered event) {
  const int role = static_cast<int>(event.info.role);
  const absl::Status status = membership_.Check(event.info);
  if (!status.ok()) {
    ++counters_.membership_events[role][static_cast<int>(MembershipEvent::kIncompatible)];
    ctx.actions.push_back(
        WorkerChanged{MembershipEvent::kIncompatible,
                      event.info.worker_id.substr(0, Membership::kMaxWorkerIdBytes),
                      event.info.role, std::string(status.message())});
    ctx.actions.push_back(SendWelcome{event.session, std::string(status.message())});
    return;
  }
  if (const auto old = membership_.FindByWorkerId(event.info.worker_id); old.has_value()) {
    const std::string reason = membership_.Find(*old)->info.incarnation == event.info.incarnation
                                   ? "the worker opened a new stream"
                                   : "the worker was restarted";
    ctx.actions.push_back(CloseSession{*old, reason});
    RemoveWorker(ctx, *old, reason, MembershipEvent::kLeave);
  }
  ++counters_.membership_events[role][static_cast<int>(MembershipEvent::kJoin)];
  ctx.actions.push_back(
      WorkerChanged{MembershipEvent::kJoin, event.info.worker_id, event.info.role, ""});
  membership_.Add(event.session, std::move(event.info), ctx.now);
  ReviewRoles(ctx.now);
  ctx.actions.push_back(SendWelcome{event.session, ""});
}

void RouterCore::Handle(const FlowContext& ctx, WorkerLeft event) {
  RemoveWorker(ctx, event.session, event.reason, MembershipEvent::kLeave);
}

void RouterCore::Handle(const FlowContext& ctx, LoadReported event) {
  if (!membership_.Heard(event.session, ctx.now)) {
    counters_.CountStale(StaleReason::kUnknownSession);
    return;
  }
  prefixes_.Update(event.session, event.load.kv_blocks_added, event.load.kv_blocks_removed);
  membership_.SetLoad(event.session, std::move(event.load));
  NoteRoom(event.session);
  ReviewRoles(ctx.now);
}

void RouterCore::RemoveWorker(const FlowContext& ctx, SessionId session, const std::string& reason,
                              MembershipEvent event) {
  const Membership::Member* member = membership_.Find(session);
  if (member == nullptr) return;
  ++counters_.membership_events[static_cast<int>(member->info.role)][static_cast<int>(event)];
  WorkerChanged change{event, member->info.worker_id, member->info.role, reason};
  membership_.Remove(session);
  ReviewRoles(ctx.now);
  prefixes_.Forget(session);
  if (Planted(RouterMutant::kIgnoreLostWorker)) return;
  std::vector<RequestId> affected;
  for (const auto& [id, entry] : flows_) {
    if (entry.flow->Involves(session)) affected.push_back(id);
  }
  std::sort(affected.begin(), affected.end());
  change.num_requests = static_cast<int>(affected.size());
  ctx.actions.push_back(std::move(change));
  for (const RequestId& id : affected) {
    Entry& entry = flows_.at(id);
    entry.flow->OnWorkerLost(ctx, session, reason);
    Settle(id, entry);
  }
}

// ---- Messages about requests

RouterCore::Entry* RouterCore::FindFor(const FlowContext& ctx, SessionId session,
                                       RequestId request) {
  if (!membership_.Heard(session, ctx.now)) {
    counters_.CountStale(StaleReason::kUnknownSession);
    return nullptr;
  }
  const auto it = flows_.find(request);
  return it == flows_.end() ? nullptr : &it->second;
}

void RouterCore::Handle(const FlowContext& ctx, Granted event) {
  if (Entry* entry = FindFor(ctx, event.session, event.key.request)) {
    entry->flow->OnGranted(ctx, event);
    Settle(event.key.request, *entry);
    NoteRoom(event.session);  // the next one may be as lucky
  } else if (membership_.Find(event.session) != nullptr) {
    // The request ended while its Reserve was on the way.
    counters_.CountStale(StaleReason::kUnknownRequest);
    ctx.actions.push_back(SendCancel{event.session, event.key, "stale grant"});
  }
}

void RouterCore::Handle(const FlowContext& ctx, AnsweredBusy event) {
  if (Entry* entry = FindFor(ctx, event.session, event.key.request)) {
    entry->flow->OnBusy(ctx, event);
    Settle(event.key.request, *entry);
  }
}

void RouterCore::Handle(const FlowContext& ctx, TokensProduced event) {
  for (ProducedToken& token : event.tokens) {
    const RequestId id = token.key.request;
    if (Entry* entry = FindFor(ctx, event.session, id)) {
      entry->flow->OnToken(ctx, event.session, std::move(token));
      Settle(id, *entry);
    } else if (membership_.Find(event.session) != nullptr) {
      counters_.CountStale(StaleReason::kUnknownRequest);
    }
  }
}

void RouterCore::Handle(const FlowContext& ctx, AttemptEnded event) {
  // For a request that ended here first this is the answer to our Cancel.
  Entry* const entry = FindFor(ctx, event.session, event.key.request);
  const bool refuses =
      event.reason == AttemptEndReason::kFailed &&
      (entry == nullptr || entry->flow->phase() == RequestFlow::Phase::kReserving ||
       event.status.code() == absl::StatusCode::kResourceExhausted);
  if (!refuses) NoteRoom(event.session);
  if (entry == nullptr) return;
  entry->flow->OnAttemptEnded(ctx, event);
  Settle(event.key.request, *entry);
}

void RouterCore::Handle(const FlowContext& ctx, AttemptPreempted event) {
  if (Entry* entry = FindFor(ctx, event.session, event.key.request)) {
    entry->flow->OnPreempted(ctx, event);
    Settle(event.key.request, *entry);
  }
}

void RouterCore::Handle(const FlowContext& ctx, KvArrived event) {
  if (Entry* entry = FindFor(ctx, event.session, event.key.request)) {
    entry->flow->OnKvArrived(ctx, event);
    Settle(event.key.request, *entry);
  }
}

// ---- Requests

void RouterCore::Handle(const FlowContext& ctx, RequestSubmitted event) {
  const RequestId id = event.spec.id;
  const bool valid = !event.spec.prompt.empty() && event.spec.sampling.max_tokens > 0;
  Entry& entry = flows_[id];
  entry.flow = std::make_unique<RequestFlow>(std::move(event.spec), options_, ctx.now);
  entry.ticket = next_ticket_++;
  queue_.emplace(entry.ticket, id);

  RequestFlow& flow = *entry.flow;
  const ClusterView view = membership_.View(ctx.now);
  const std::string missing = MissingRole(view);
  can_serve_ = missing.empty();
  const absl::Time gives_up_at = could_serve_at_ + options_.no_worker_timeout;
  const bool must_wait =
      !missing.empty() || IsAnyStarving(ctx.now) || num_running() >= options_.max_running_requests;
  if (!valid) {
    flow.Fail(ctx, absl::InvalidArgumentError("a prompt token and max_tokens >= 1 are required"));
  } else if (draining_) {
    flow.Fail(ctx, absl::UnavailableError("the router is draining (stage admission)"),
              RejectReason::kDraining);
  } else if (!missing.empty() && ctx.now >= gives_up_at) {
    flow.Fail(ctx, absl::UnavailableError(absl::StrCat(missing, " (stage admission)")),
              MissingRoleReason(view));
  } else if (must_wait && num_queued() > options_.max_queued_requests) {
    flow.Fail(ctx,
              absl::ResourceExhaustedError(absl::StrCat("queue full: ", num_queued() - 1,
                                                        " requests wait (stage admission)")),
              RejectReason::kQueueFull);
  } else if (!missing.empty()) {
    flow.WaitForRole(gives_up_at);
  }
  Settle(id, entry);
}

void RouterCore::Handle(const FlowContext& ctx, RequestCancelled event) {
  const auto it = flows_.find(event.id);
  if (it == flows_.end()) return;  // ended already
  it->second.flow->Cancel(ctx, event.satisfied);
  Settle(event.id, it->second);
}

void RouterCore::Handle(const FlowContext&, DrainStarted) { draining_ = true; }

void RouterCore::NoteRoom(SessionId session) {
  const Membership::Member* member = membership_.Find(session);
  if (member != nullptr && member->info.role != WorkerRole::kPrefill) may_have_room_ = session;
}

bool RouterCore::IsAnyStarving(absl::Time now) const {
  return !starving_.empty() && starving_.begin()->first <= now;
}

void RouterCore::AdmitQueued(const FlowContext& ctx) {
  if (queue_.empty() || num_running() >= options_.max_running_requests) return;
  if (IsAnyStarving(ctx.now)) return;
  if (!membership_.HasEachRole(ctx.now)) return;  // they wait, up to queue_timeout
  while (!queue_.empty() && num_running() < options_.max_running_requests) {
    const RequestId id = queue_.begin()->second;
    Entry& entry = flows_.at(id);
    queue_.erase(queue_.begin());
    entry.ticket = 0;
    admissions_.Count(ctx.now);
    entry.flow->Admit(ctx);
    Settle(id, entry);
  }
}

void RouterCore::ResumeWaiting(const FlowContext& ctx) {
  if (!waiting_.is_role_line_empty() && membership_.HasEachRole(ctx.now)) {
    for (const RequestId& id : waiting_.RoleLine()) {
      Entry& entry = flows_.at(id);
      entry.flow->OnRoleBack(ctx);
      Settle(id, entry);
    }
  }
  const std::optional<SessionId> session = std::exchange(may_have_room_, std::nullopt);
  if (!session.has_value()) return;
  for (const RequestId& id : waiting_.FirstForRoom(kMaxPassedOver + 1)) {
    Entry& entry = flows_.at(id);
    entry.flow->OnRoom(ctx, *session);
    const bool is_asked =
        !entry.flow->ended() && entry.flow->phase() != RequestFlow::Phase::kWaiting;
    Settle(id, entry);
    if (is_asked) return;
  }
}

void RouterCore::ResumeRetries(const FlowContext& ctx) {
  while (const std::optional<RequestId> id = retries_.TakeNext(num_running(), ctx.now)) {
    Entry& entry = flows_.at(*id);
    entry.flow->OnRetryPlace(ctx);
    Settle(*id, entry);
  }
}

void RouterCore::Settle(RequestId id, Entry& entry) {
  const absl::Time timer = entry.flow->next_timer();
  if (timer != entry.timer || entry.flow->ended()) {
    timers_.erase({entry.timer, id});
    entry.timer = timer;
    if (timer != absl::InfiniteFuture()) timers_.insert({timer, id});
  }
  const absl::Time precedence = entry.flow->has_precedence_at(options_.starvation_patience);
  if (precedence != entry.has_precedence_at) {
    starving_.erase({entry.has_precedence_at, id});
    entry.has_precedence_at = precedence;
    if (precedence != absl::InfiniteFuture()) starving_.insert({precedence, id});
  }
  waiting_.Place(id, entry.flow->waits_for(), entry.flow->has_begun(), entry.flow->waiting_since());
  if (!entry.flow->ended()) return;
  if (entry.ticket != 0) queue_.erase(entry.ticket);
  flows_.erase(id);
}

// ---- Time

void RouterCore::Handle(const FlowContext& ctx, RouterResumed) {
  membership_.ForgiveSilence(ctx.now);
  ReviewRoles(ctx.now);
}

void RouterCore::Handle(const FlowContext& ctx, Tick) {
  for (const SessionId session : membership_.Silent(ctx.now)) {
    const std::string reason =
        absl::StrCat("silent for ", absl::FormatDuration(options_.worker_timeout));
    ctx.actions.push_back(CloseSession{session, reason});
    RemoveWorker(ctx, session, reason, MembershipEvent::kExpire);
  }
  ReviewRoles(ctx.now);  // also who has become unreachable
  // Each due flow once: a flow that asks for `now` again waits for the next tick.
  std::vector<RequestId> due;
  for (const auto& [time, id] : timers_) {
    if (time > ctx.now) break;
    due.push_back(id);
  }
  for (const RequestId& id : due) {
    Entry& entry = flows_.at(id);
    entry.flow->OnTimer(ctx);
    Settle(id, entry);
  }
}

// ---- What others see

std::string RouterCore::NotReadyReason(absl::Time now) const {
  return draining_ ? "draining" : MissingRole(membership_.View(now));
}

std::vector<int> RouterCore::CountPhases() const {
  std::vector<int> counts(static_cast<int>(RequestFlow::Phase::kEnded));
  for (const auto& [id, entry] : flows_) ++counts[static_cast<int>(entry.flow->phase())];
  return counts;
}

ClusterSnapshot RouterCore::Snapshot(absl::Time now) const {
  ClusterSnapshot snapshot;
  for (const auto& [session, member] : membership_.members()) {
    const WorkerLoad& load = member.load;
    WorkerSnapshot worker;
    worker.worker_id = member.info.worker_id;
    worker.role = WorkerRoleName(member.info.role);
    worker.state = Membership::StateName(membership_.StateOf(member, now));
    worker.model = member.info.model;
    worker.address = member.info.admin_address;
    worker.isa = member.info.isa;
    worker.dtype = member.info.dtype;
    worker.running = load.running_requests;
    worker.waiting = load.waiting_requests;
    worker.queued_tokens = load.queued_prefill_tokens;
    worker.blocks_total = load.blocks_total;
    worker.blocks_free = load.blocks_free;
    worker.blocks_cached = load.blocks_cached;
    worker.blocks_active = load.blocks_active;
    worker.blocks_receiving = load.blocks_receiving;
    worker.blocks_sending = load.blocks_sending;
    worker.blocks_quarantined = load.blocks_quarantined;
    worker.transports = load.transports;
    worker.heartbeat_age = now - member.last_heard;
    worker.uptime = load.uptime;
    worker.output_tokens_per_second = load.decode_tokens_per_second;
    worker.prompt_tokens_per_second = load.prefill_tokens_per_second;
    snapshot.workers.push_back(std::move(worker));
  }
  std::sort(snapshot.workers.begin(), snapshot.workers.end(),
            [](const auto& a, const auto& b) { return a.worker_id < b.worker_id; });
  snapshot.requests_queued = num_queued();
  snapshot.requests_running = num_running();
  snapshot.max_model_len = membership_.MaxModelLen(now);
  return snapshot;
}

}  // namespace sluice::router
