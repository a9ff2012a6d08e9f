#include "services/router/fleet/dispatcher_thread.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"

namespace sluice::router {
namespace {

// A step's tokens make an action each; memory for more is given back.
constexpr size_t kMaxKeptActions = 2048;

// A turn that reached no more sinks than this serves them itself: posting to their fronts would
// cost more than it spreads.
constexpr size_t kMaxSinksServedAtOnce = 4;
// Of a turn that reaches many, so many are posted at a time: the fronts begin while it goes on.
constexpr size_t kMaxTouched = 32;

// What the published snapshot and readiness are made of.
bool IsOfMembership(const Event& event) {
  return std::holds_alternative<WorkerRegistered>(event) ||
         std::holds_alternative<WorkerLeft>(event) || std::holds_alternative<LoadReported>(event);
}

GenerationResult Refusal(absl::Status status, std::optional<absl::Duration> retry_after) {
  GenerationResult result;
  result.end = GenerationEnd::kFailed;
  result.status = std::move(status);
  result.retry_after = retry_after;
  return result;
}

void LogChange(const WorkerChanged& change) {
  const std::string worker =
      absl::StrCat("worker ", change.worker_id, " (", WorkerRoleName(change.role), ")");
  switch (change.event) {
    case MembershipEvent::kJoin:
      SLUICE_LOG(Info) << worker << " joined";
      break;
    case MembershipEvent::kIncompatible:
      SLUICE_LOG(Warning) << worker << " refused: " << change.reason;
      break;
    case MembershipEvent::kLeave:
    case MembershipEvent::kExpire:
    case MembershipEvent::kNumEvents:
      if (change.num_requests == 0) {
        SLUICE_LOG(Info) << worker << " left: " << change.reason;
      } else {
        SLUICE_LOG(Warning) << worker << " left: " << change.reason << "; it had "
                            << change.num_requests << " requests";
      }
      break;
  }
}

}  // namespace

DispatcherThread::DispatcherThread(DispatcherOptions options, DispatcherObserver* observer)
    : options_(std::move(options)),
      observer_(observer),
      started_at_(MonotonicNow()),
      core_(options_.core),
      last_tick_(started_at_),
      snapshot_(std::make_shared<const ClusterSnapshot>()),
      snapshot_at_(started_at_),
      ticked_at_(started_at_),
      not_ready_reason_("starting") {}

DispatcherThread::~DispatcherThread() { Stop(); }

void DispatcherThread::Start(FleetPort* port) {
  port_ = port;
  last_turn_ = last_tick_ = next_tick_ = MonotonicNow();
  Publish(last_turn_);
  thread_ = std::thread([this] { Run(); });
}

void DispatcherThread::Stop() {
  bool wake = false;
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    idle_.SignalAll();
    mailbox_.stop = true;
    wake = CallThreadLocked();
  }
  if (wake) wake_.Signal();
  if (thread_.joinable()) thread_.join();
}

void DispatcherThread::AnnounceDrain() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
}

void DispatcherThread::StartDrain() {
  bool wake = false;
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
    mailbox_.drain = true;
    wake = CallThreadLocked();
  }
  if (wake) wake_.Signal();
}

bool DispatcherThread::WaitUntilIdle(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  return idle_.Await(&mu_, absl::Condition(this, &DispatcherThread::IsIdleLocked), timeout);
}

void DispatcherThread::Submit(GenerationSpec spec, std::shared_ptr<GenerationSink> sink) {
  bool stopped = false, wake = false;
  {
    absl::MutexLock lock(&mu_);
    stopped = stopped_;
    if (!stopped) {
      if (static_cast<int>(mailbox_.submissions.size()) < options_.max_mailbox_requests) {
        mailbox_.submissions.emplace_back(std::move(spec), std::move(sink));
      } else {
        mailbox_.refused.emplace_back(spec.api, std::move(sink));
      }
      wake = CallThreadLocked();
    }
  }
  if (wake) wake_.Signal();
  if (!stopped) return;
  // There is no dispatcher any more.
  sink->OnEnd(Refusal(absl::UnavailableError("the router is shutting down"), std::nullopt));
  sink->Flush(/*alone=*/true);
}

void DispatcherThread::Cancel(RequestId id) { PostCancel(id, /*satisfied=*/false); }

void DispatcherThread::Stop(RequestId id) { PostCancel(id, /*satisfied=*/true); }

void DispatcherThread::PostCancel(RequestId id, bool satisfied) {
  bool wake = false;
  {
    absl::MutexLock lock(&mu_);
    if (stopped_) return;
    mailbox_.cancels.emplace(id, satisfied);
    wake = CallThreadLocked();
  }
  if (wake) wake_.Signal();
}

void DispatcherThread::OnWorkerEvent(SessionId session, Event event) {
  Mailbox mail;
  {
    absl::MutexLock lock(&mu_);
    if (stopped_) return;
    mailbox_.worker_events.emplace_back(session, std::move(event));
    if (!TryBeginTurnLocked(&mail)) return;
  }
  ServeTurn(std::move(mail));
}

ClusterSnapshot DispatcherThread::Snapshot() const {
  std::shared_ptr<const ClusterSnapshot> published;
  absl::Time published_at;
  {
    absl::MutexLock lock(&mu_);
    published = snapshot_;
    published_at = snapshot_at_;
  }
  const absl::Time now = MonotonicNow();
  ClusterSnapshot snapshot = *published;
  for (WorkerSnapshot& worker : snapshot.workers) worker.heartbeat_age += now - published_at;
  snapshot.requests_queued = num_queued_.load(std::memory_order_relaxed);
  snapshot.requests_running = num_running_.load(std::memory_order_relaxed);
  snapshot.uptime = now - started_at_;
  return snapshot;
}

std::string DispatcherThread::NotReadyReason() const {
  absl::MutexLock lock(&mu_);
  if (stopped_) return "shutting down";
  if (draining_) return "draining";
  // What was published last says nothing of now if the dispatcher stands still.
  std::string standstill = StandstillReasonLocked(options_.heartbeat_limit);
  return standstill.empty() ? not_ready_reason_ : standstill;
}

std::string DispatcherThread::NotLiveReason() const {
  absl::MutexLock lock(&mu_);
  return stopped_ ? "" : StandstillReasonLocked(options_.hang_limit);
}

std::string DispatcherThread::StandstillReasonLocked(absl::Duration limit) const {
  const absl::Duration age = MonotonicNow() - ticked_at_;
  if (age < limit) return "";
  return absl::StrCat("the dispatcher has not moved for ", absl::FormatDuration(age));
}

void DispatcherThread::Run() {
  {
    absl::MutexLock lock(&mu_);
    turn_taken_ = false;
    timer_due_ = next_tick_;
  }
  while (true) {
    Mailbox mail = AwaitTurn();
    const bool stop = mail.stop;
    const absl::Time now = MonotonicNow();
    NoticeStall(now);
    HandleMail(std::move(mail), now);
    if (stop) {
      EndAll(now);
      Flush(std::exchange(touched_, {}));
      return;  // with the turn: nobody gets it any more
    }
    RunTimers(now);
    Flush(EndTurn(now));
  }
}

DispatcherThread::Mailbox DispatcherThread::AwaitTurn() {
  absl::MutexLock lock(&mu_);
  while (turn_taken_ || !(thread_is_next_ || MonotonicNow() >= timer_due_)) {
    // Whoever has the turn signals when it ends.
    if (turn_taken_ && MonotonicNow() >= timer_due_) thread_is_next_ = true;  // not passed over
    sleeps_until_ = turn_taken_ ? absl::InfiniteFuture() : timer_due_;
    wake_.Wait(&mu_, sleeps_until_ - MonotonicNow());
  }
  sleeps_until_ = absl::InfinitePast();  // awake
  thread_is_next_ = false;
  turn_taken_ = busy_ = true;
  return std::exchange(mailbox_, Mailbox());
}

bool DispatcherThread::CallThreadLocked() {
  if (std::exchange(thread_is_next_, true)) return false;
  return !turn_taken_;  // else whoever has the turn wakes it up
}

bool DispatcherThread::TryBeginTurnLocked(Mailbox* mail) {
  if (turn_taken_ || thread_is_next_) return false;
  turn_taken_ = busy_ = true;
  *mail = std::exchange(mailbox_, Mailbox());
  return true;
}

void DispatcherThread::ServeTurn(Mailbox mail) {
  const absl::Time now = MonotonicNow();
  NoticeStall(now);
  HandleMail(std::move(mail), now);
  Flush(EndTurn(now));
}

DispatcherThread::Sinks DispatcherThread::EndTurn(absl::Time now) {
  num_queued_.store(core_.num_queued(), std::memory_order_relaxed);
  num_running_.store(core_.num_running(), std::memory_order_relaxed);
  if (std::exchange(readiness_changed_, false)) Publish(now);
  const absl::Time due = std::min(next_tick_, core_.NextTimer(now));
  const bool busy = !sinks_.empty();
  Sinks touched = std::exchange(touched_, {});
  bool wake = false;
  {
    absl::MutexLock lock(&mu_);
    turn_taken_ = false;
    busy_ = busy;
    timer_due_ = due;
    if (!mailbox_.empty()) thread_is_next_ = true;
    if (IsIdleLocked()) idle_.SignalAll();
    wake = thread_is_next_ || due < sleeps_until_;
  }
  if (wake) wake_.Signal();
  return touched;
}

void DispatcherThread::Flush(const Sinks& sinks) {
  const bool alone = sinks.size() <= kMaxSinksServedAtOnce;
  for (const auto& sink : sinks) sink->Flush(alone);
}

void DispatcherThread::NoticeStall(absl::Time now) {
  // Between two turns the thread sleeps at most tick_interval; much longer means that this process
  // was stopped or starved, and the workers' messages lie unread in their sockets.
  const absl::Duration stall = options_.tick_interval + options_.core.worker_timeout / 4;
  if (now - last_turn_ > stall) {
    SLUICE_LOG(Warning) << "the router did not run for " << absl::FormatDuration(now - last_turn_);
    Step(RouterResumed{}, now);
  }
  last_turn_ = now;
}

void DispatcherThread::RunTimers(absl::Time now) {
  if (core_.NextTimer(now) <= now) {
    readiness_changed_ = true;
    StepAndMeasure(Tick{}, now);
  }
  if (now < next_tick_) return;
  port_->Tick(now);
  if (observer_ != nullptr) observer_->OnTick(core_, now);
  readiness_changed_ = true;
  last_tick_ = now;
  next_tick_ = now + options_.tick_interval;
}

void DispatcherThread::HandleMail(Mailbox mail, absl::Time now) {
  if (mail.drain) Step(DrainStarted{}, now);
  for (const auto& [api, sink] : mail.refused) {
    EndRequest ended;
    ended.api = api;
    ended.result = Refusal(absl::ResourceExhaustedError("queue full (stage admission)"),
                           core_.RetryAfter(now));
    ended.reject = RejectReason::kQueueFull;
    if (observer_ != nullptr) observer_->OnEnd(ended);
    sink->OnEnd(ended.result);
    touched_.push_back(sink);
  }
  for (Submission& submission : mail.submissions) Accept(std::move(submission), now);
  for (auto& [session, event] : mail.worker_events) {
    readiness_changed_ |= IsOfMembership(event);
    if (std::holds_alternative<TokensProduced>(event)) {
      Step(std::move(event), now);
    } else {
      StepAndMeasure(std::move(event), now);
    }
    port_->Handled(session);
  }
  // A cancel comes after the submission it names.
  for (const auto& [id, satisfied] : mail.cancels) Step(RequestCancelled{id, satisfied}, now);
}

void DispatcherThread::Accept(Submission submission, absl::Time now) {
  auto& [spec, sink] = submission;
  const auto [it, is_new] = sinks_.emplace(spec.id, sink);
  if (!is_new) {
    sink->OnEnd(Refusal(absl::AlreadyExistsError(
                            absl::StrCat("request ", spec.id.ToString(), " is running already")),
                        std::nullopt));
    touched_.push_back(std::move(sink));
    return;
  }
  StepAndMeasure(RequestSubmitted{std::move(spec)}, now);
}

void DispatcherThread::Step(Event event, absl::Time now) {
  core_.Step(std::move(event), now, &actions_);
  CarryOutActions();
}

void DispatcherThread::StepAndMeasure(Event event, absl::Time now) {
  const uint64_t routes_before = core_.counters().num_routes();
  const absl::Time start = MonotonicNow();
  core_.Step(std::move(event), now, &actions_);
  if (observer_ != nullptr && core_.counters().num_routes() != routes_before) {
    observer_->OnRouted(MonotonicNow() - start);
  }
  CarryOutActions();
}

void DispatcherThread::CarryOutActions() {
  for (Action& action : actions_) {
    if (const auto* emitted = std::get_if<EmitTokens>(&action)) {
      if (observer_ != nullptr) observer_->OnTokens(*emitted);
      if (const auto it = sinks_.find(emitted->id); it != sinks_.end()) {
        it->second->OnTokens(emitted->tokens);
        touched_.push_back(it->second);
        if (touched_.size() == kMaxTouched) PostTouched();
      }
    } else if (const auto* ended = std::get_if<EndRequest>(&action)) {
      if (observer_ != nullptr) observer_->OnEnd(*ended);
      if (const auto it = sinks_.find(ended->id); it != sinks_.end()) {
        touched_.push_back(std::move(it->second));
        sinks_.erase(it);
        touched_.back()->OnEnd(ended->result);
      }
    } else if (const auto* change = std::get_if<WorkerChanged>(&action)) {
      LogChange(*change);
    } else {
      port_->Send(std::move(action));
    }
  }
  actions_.clear();
  if (actions_.capacity() > kMaxKeptActions) actions_ = std::vector<Action>();
}

void DispatcherThread::PostTouched() {
  for (const auto& sink : touched_) sink->Flush(/*alone=*/false);
  touched_.clear();
}

void DispatcherThread::EndAll(absl::Time now) {
  // The clients learn the reason; the workers get a Cancel each.
  auto sinks = std::exchange(sinks_, {});
  for (auto& [id, sink] : sinks) {
    sink->OnEnd(Refusal(absl::UnavailableError("the router is shutting down"), std::nullopt));
    touched_.push_back(std::move(sink));
    Step(RequestCancelled{id}, now);
  }
}

void DispatcherThread::Publish(absl::Time now) {
  auto snapshot = std::make_shared<const ClusterSnapshot>(core_.Snapshot(now));
  std::string reason = core_.NotReadyReason(now);
  absl::MutexLock lock(&mu_);
  snapshot_ = std::move(snapshot);
  snapshot_at_ = now;
  ticked_at_ = last_tick_;
  not_ready_reason_ = std::move(reason);
}

}  // namespace sluice::router
