#include "services/worker_runtime/engine_loop.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/niceness.h"

namespace sluice::worker {
namespace {

// An idle thread still shows that it lives (readiness asks for less than five seconds).
constexpr absl::Duration kIdleBeat = absl::Seconds(1);
// The engine had work and could do none of it; something must happen elsewhere first.
constexpr absl::Duration kStallPause = absl::Milliseconds(5);
// While stepping, load is published at most this often; when idle, at once.
constexpr absl::Duration kPublishInterval = absl::Milliseconds(50);
// Who holds the blocks is for people.
constexpr absl::Duration kBlockReportInterval = absl::Milliseconds(250);

template <typename... Visitors>
struct Overloaded : Visitors... {
  using Visitors::operator()...;
};
template <typename... Visitors>
Overloaded(Visitors...) -> Overloaded<Visitors...>;

}  // namespace

EngineLoop::EngineLoop(Engine* engine, RequestHandler* handler, LoadBoard* board,
                       WorkerMetrics* metrics, const Clock* clock, size_t queue_capacity)
    : engine_(engine),
      handler_(handler),
      board_(board),
      metrics_(metrics),
      clock_(clock),
      queue_(queue_capacity),
      last_beat_nanos_(absl::ToUnixNanos(clock->Now())),
      last_progress_nanos_(last_beat_nanos_.load()) {}

EngineLoop::~EngineLoop() { Stop(); }

void EngineLoop::Start(int niceness) {
  Publish(clock_->Now());  // here, so that no router is told of a worker without blocks
  thread_ = std::thread([this, niceness] {
    SetNicenessOfThisThread(niceness);
    Run();
  });
}

void EngineLoop::Stop() {
  stopping_.store(true);
  queue_.Close();
  if (thread_.joinable()) thread_.join();
}

bool EngineLoop::Post(RouterCommand command) {
  // The other half is kept for our own threads, whose messages must not be lost.
  if (queue_.size() >= queue_.capacity() / 2) return false;
  return queue_.TryPush(Command(std::move(command)));
}

bool EngineLoop::Post(InternalCommand command) {
  return queue_.TryPush(Command(std::move(command)));
}

absl::Duration EngineLoop::HeartbeatAge() const {
  return clock_->Now() - absl::FromUnixNanos(last_beat_nanos_.load(std::memory_order_relaxed));
}

absl::Duration EngineLoop::StuckFor() const {
  return clock_->Now() - absl::FromUnixNanos(last_progress_nanos_.load(std::memory_order_relaxed));
}

void EngineLoop::Run() {
  while (true) {
    std::vector<Command> commands;
    if (engine_->HasWork() && !stalled_) {
      commands = queue_.TakeAll();
    } else if (engine_->HasWork()) {
      commands = queue_.WaitAndTakeAll(kStallPause);
    } else {
      const absl::Duration until_deadline = handler_->NextDeadline() - clock_->Now();
      commands = queue_.WaitAndTakeAll(std::clamp(until_deadline, absl::ZeroDuration(), kIdleBeat));
    }
    for (Command& command : commands) {
      std::visit([this](auto& c) { Apply(std::move(c)); }, command);
    }
    if (stopping_.load() && commands.empty()) break;
    absl::Time now = clock_->Now();
    if (handler_->NextDeadline() <= now) handler_->OnTick(now);
    if (engine_->HasWork() && !stopping_.load()) {
      StepOnce();
      now = clock_->Now();
    }
    if (!engine_->HasWork() || now - last_publish_ >= kPublishInterval) Publish(now);
    Beat(now);
  }
  Publish(clock_->Now());
}

void EngineLoop::Apply(RouterCommand command) {
  std::visit(
      Overloaded{
          [this](ReserveCommand& c) { handler_->OnReserve(c.session, std::move(c.sequence)); },
          [this](PrefillCommand& c) { handler_->OnPrefill(c.session, std::move(c.order)); },
          [this](RunCommand& c) { handler_->OnRun(c.session, std::move(c.sequence)); },
          [this](CancelCommand& c) { handler_->OnCancel(c.session, c.order); },
      },
      command);
}

void EngineLoop::Apply(InternalCommand command) {
  std::visit(Overloaded{
                 [this](ReserveAnswer& c) { handler_->OnReserveAnswer(std::move(c)); },
                 [this](TransferEvent& c) { handler_->OnTransferEvent(c); },
                 [this](SessionLostCommand& c) { handler_->OnSessionLost(c.session); },
                 [this](DrainCommand&) {
                   handler_->BeginDrain();
                   ending_ = std::max(ending_, EndingStage::kDraining);
                 },
                 [this](AbortAllCommand& c) {
                   handler_->AbortAll(c.why);
                   ending_ = EndingStage::kAborted;
                 },
             },
             command);
}

void EngineLoop::StepOnce() {
  StepInterval interval;
  interval.begin = clock_->Now();
  const StepResult result = engine_->Step();
  interval.end = clock_->Now();
  stalled_ = result.idle;
  if (!result.idle) {
    const absl::Duration busy = interval.end - interval.begin;
    metrics_->Step(result, busy);
    // A mixed step's time is split by tokens: close enough, and never zero.
    const double prefill = result.num_prefill_tokens;
    const double decode = result.num_decode_tokens;
    const double total = std::max(prefill + decode, 1.0);
    prefill_rate_.Add(prefill, busy * (prefill / total));
    decode_rate_.Add(decode, busy * (decode / total));
  }
  handler_->OnStep(result, interval);
}

void EngineLoop::Publish(absl::Time now) {
  last_publish_ = now;
  LoadBoard::EngineState state;
  state.load = engine_->Load();
  state.prefill_tokens_per_second = prefill_rate_.TokensPerSecond();
  state.decode_tokens_per_second = decode_rate_.TokensPerSecond();
  state.num_requests = handler_->num_requests();
  state.ending = ending_;
  board_->PublishEngine(state, engine_->TakePrefixCacheChanges());
  metrics_->Load(state.load);
  if (!engine_->HasWork() || now - last_block_report_ >= kBlockReportInterval) {
    last_block_report_ = now;
    board_->PublishBlocks(MakeBlockReport(*engine_, *handler_, now));
  }
  if (board_->draining()) metrics_->SetDrainRemaining(state.num_requests);
}

void EngineLoop::Beat(absl::Time now) {
  last_beat_nanos_.store(absl::ToUnixNanos(now), std::memory_order_relaxed);
  if (!engine_->HasWork() || !stalled_) {
    last_progress_nanos_.store(absl::ToUnixNanos(now), std::memory_order_relaxed);
  }
}

}  // namespace sluice::worker
