#include "services/worker_runtime/worker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"

namespace sluice::worker {
namespace {

// What peers get to hear our last acknowledgements when we stop.
constexpr absl::Duration kTransferGrace = absl::Milliseconds(500);
constexpr absl::Duration kDrainPoll = absl::Milliseconds(20);

WorkerIdentity MakeIdentity(const WorkerOptions& options, const Engine& engine,
                            const KvChannel* channel) {
  WorkerIdentity identity;
  identity.worker_id = options.worker_id;
  identity.incarnation = options.incarnation;
  identity.role = options.role;
  identity.model = options.served_model_name;
  identity.fingerprint = engine.fingerprint();
  identity.max_model_len = engine.max_model_len();
  identity.max_num_seqs = options.max_num_seqs;
  identity.num_kv_blocks = engine.Load().blocks.total;
  if (channel != nullptr) identity.kv_address = channel->LocalAddress();
  identity.isa = engine.isa();
  identity.dtype = options.dtype;
  identity.admin_address = options.admin_address;
  identity.vocab_size = engine.spec().vocab_size;
  return identity;
}

}  // namespace

std::unique_ptr<Worker> Worker::Start(WorkerOptions options, std::unique_ptr<Engine> engine,
                                      TransferParts transfer, const HandlerFactory& make_handler,
                                      MetricsRegistry* registry) {
  std::unique_ptr<Worker> worker(new Worker(std::move(options), std::move(engine),
                                            std::move(transfer), make_handler, registry));
  worker->loop_->Start(worker->options_.compute_niceness);
  if (worker->transfers_ != nullptr) worker->transfers_->Start();
  worker->sessions_->Start(worker->loop_.get());
  return worker;
}

Worker::Worker(WorkerOptions options, std::unique_ptr<Engine> engine, TransferParts transfer,
               const HandlerFactory& make_handler, MetricsRegistry* registry)
    : options_(std::move(options)),
      engine_(std::move(engine)),
      metrics_(registry),
      board_(clock_->Now()) {
  metrics_.SetModelInfo({{"model", options_.served_model_name},
                         {"architecture", engine_->spec().architecture_name},
                         {"quantization", engine_->spec().quantization},
                         {"dtype", options_.dtype},
                         {"isa", engine_->isa()}});
  metrics_.SetLoadDuration(options_.load_duration);
  sessions_ = std::make_unique<RouterSessions>(
      options_.routers, MakeIdentity(options_, *engine_, transfer.channel.get()), &board_,
      &metrics_, clock_, [this] { return StandstillReason().empty(); });
  if (transfer.agent != nullptr) {
    transfers_ = std::make_unique<TransferLoop>(
        std::move(transfer.channel), std::move(transfer.agent), clock_, &board_, &metrics_,
        [this](const TransferLoop::Report& report) {
          return std::visit([this](const auto& r) { return loop_->Post(InternalCommand(r)); },
                            report);
        },
        [this] { options_.on_fatal("the transfer thread does not drain its queue"); });
  }
  HandlerContext context;
  context.engine = engine_.get();
  context.routers = sessions_.get();
  context.transfers = transfers_.get();
  context.metrics = &metrics_;
  context.clock = clock_;
  context.self = options_.incarnation;
  context.lease = options_.transfer.lease;
  context.fetch_patience = options_.transfer.fetch_patience;
  handler_ = make_handler(context);
  loop_ = std::make_unique<EngineLoop>(engine_.get(), handler_.get(), &board_, &metrics_, clock_);
}

Worker::~Worker() { Stop(); }

void Worker::BeginDrain() {
  if (draining_.exchange(true)) return;
  board_.SetDraining();
  metrics_.SetDraining(true);
  drain_posted_ = loop_->Post(InternalCommand(DrainCommand{}));
  if (!drain_posted_) {
    SLUICE_LOG(Warning) << "the engine thread's queue is full; new requests are refused by the "
                           "routers only";
  }
  sessions_->ReportLoadNow();
}

bool Worker::WaitDrained(absl::Duration timeout) {
  const absl::Time deadline = clock_->Now() + timeout;
  // The number of transfers may be a moment old: ask a few times in a row.
  for (int quiet = 0; quiet < 3;) {
    if (!drain_posted_) drain_posted_ = loop_->Post(InternalCommand(DrainCommand{}));
    const bool idle =
        HasEnded(EndingStage::kDraining) && (transfers_ == nullptr || transfers_->in_flight() == 0);
    quiet = idle ? quiet + 1 : 0;
    if (clock_->Now() >= deadline) return idle;
    absl::SleepFor(kDrainPoll);
  }
  return true;
}

void Worker::Stop() {
  if (std::exchange(stopped_, true)) return;
  BeginDrain();
  if (loop_->Post(
          InternalCommand(AbortAllCommand{absl::UnavailableError("the worker is stopping")}))) {
    // The last messages must be queued before the sessions flush; a step under way may delay them.
    const absl::Time deadline = clock_->Now() + absl::Seconds(2);
    while (!HasEnded(EndingStage::kAborted) && clock_->Now() < deadline) {
      absl::SleepFor(kDrainPoll);
    }
  }
  sessions_->Stop();
  if (transfers_ != nullptr) transfers_->Stop(kTransferGrace);
  loop_->Stop();
}

std::string Worker::StandstillReason() const {
  if (const absl::Duration age = loop_->HeartbeatAge(); age >= options_.heartbeat_limit) {
    return absl::StrCat("the engine thread has not moved for ", absl::FormatDuration(age));
  }
  return TransferStandstillReason(options_.heartbeat_limit);
}

std::string Worker::TransferStandstillReason(absl::Duration limit) const {
  const absl::Duration age =
      transfers_ == nullptr ? absl::ZeroDuration() : transfers_->HeartbeatAge();
  if (age < limit) return "";
  return absl::StrCat("the transfer thread has not moved for ", absl::FormatDuration(age));
}

std::string Worker::NotReadyReason() const {
  if (draining_.load()) return "draining";
  std::string standstill = StandstillReason();
  return standstill.empty() ? sessions_->NotAttachedReason() : standstill;
}

std::string Worker::NotLiveReason() const {
  if (const absl::Duration stuck = loop_->StuckFor(); stuck >= options_.hang_limit) {
    return absl::StrCat("the engine thread has made no progress for ", absl::FormatDuration(stuck));
  }
  return TransferStandstillReason(options_.hang_limit);
}

std::string Worker::BlocksJson() const {
  return BlockReportJson(
      board_.blocks(), {options_.worker_id, options_.role, options_.transfer.lease}, clock_->Now());
}

bool Worker::HasEnded(EndingStage stage) const {
  const LoadBoard::EngineState state = board_.engine();
  return state.ending >= stage && state.num_requests == 0;
}

int Worker::num_requests() const { return board_.engine().num_requests; }

}  // namespace sluice::worker
