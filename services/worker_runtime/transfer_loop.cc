#include "services/worker_runtime/transfer_loop.h"

#include <algorithm>
#include <utility>

#include "common/log.h"

namespace sluice::worker {
namespace {

constexpr absl::Duration kPublishInterval = absl::Milliseconds(200);
// An idle thread still shows that it lives (readiness asks for less than five seconds).
constexpr absl::Duration kIdleSleep = absl::Seconds(1);
// Between two offers of a report that found no room.
constexpr absl::Duration kRedeliverPause = absl::Milliseconds(5);

}  // namespace

TransferLoop::TransferLoop(std::unique_ptr<KvChannel> channel, std::unique_ptr<TransferAgent> agent,
                           const Clock* clock, LoadBoard* board, WorkerMetrics* metrics,
                           ReportFn report, std::function<void()> on_overflow,
                           size_t queue_capacity)
    : channel_(std::move(channel)),
      agent_(std::move(agent)),
      clock_(clock),
      board_(board),
      metrics_(metrics),
      report_(std::move(report)),
      on_overflow_(std::move(on_overflow)),
      queue_(queue_capacity, [this] { channel_->Wake(); }),
      last_beat_nanos_(absl::ToUnixNanos(clock->Now())) {}

TransferLoop::~TransferLoop() { Stop(absl::ZeroDuration()); }

void TransferLoop::Start() {
  thread_ = std::thread([this] { Run(); });
}

void TransferLoop::Stop(absl::Duration grace) {
  if (!thread_.joinable()) return;
  grace_nanos_.store(absl::ToInt64Nanoseconds(grace));
  stopping_.store(true);
  channel_->Wake();
  thread_.join();
}

absl::Duration TransferLoop::HeartbeatAge() const {
  return clock_->Now() - absl::FromUnixNanos(last_beat_nanos_.load(std::memory_order_relaxed));
}

void TransferLoop::StartSend(SendSpec spec) { Post(std::move(spec)); }
void TransferLoop::Offer(TransferId transfer, int begin_token, int end_token,
                         std::vector<absl::Span<const uint8_t>> blocks) {
  Post(OfferCommand{transfer, begin_token, end_token, std::move(blocks)});
}
void TransferLoop::FinishSend(TransferId transfer, FirstToken first) {
  Post(FinishCommand{transfer, std::move(first)});
}
void TransferLoop::CancelSend(TransferId transfer, absl::Status reason) {
  Post(CancelCommand{transfer, std::move(reason), /*send=*/true});
}
void TransferLoop::Reserve(ReceiveSpec spec) { Post(std::move(spec)); }
void TransferLoop::Fetch(FetchSpec spec) { Post(std::move(spec)); }
void TransferLoop::CancelReceive(TransferId transfer, absl::Status reason) {
  Post(CancelCommand{transfer, std::move(reason), /*send=*/false});
}

void TransferLoop::Post(Command command) {
  if (queue_.TryPush(std::move(command))) return;
  // Commands are few per transfer and the thread never blocks, so a full queue is a hung thread.
  if (!stopping_.load() && !overflowed_.exchange(true)) on_overflow_();
}

void TransferLoop::Run() {
  std::vector<TransferEvent> events;
  absl::Time stop_at = absl::InfiniteFuture();
  while (true) {
    for (Command& command : queue_.TakeAll()) {
      std::visit([this](auto& c) { Apply(std::move(c)); }, command);
    }
    events.clear();
    const bool moved = agent_->Poll(&events);
    for (TransferEvent& event : events) {
      Observe(event);
      undelivered_.push_back(std::move(event));
    }
    Deliver();
    const absl::Time now = clock_->Now();
    if (now >= next_publish_ || !events.empty()) PublishStats(now);
    Beat(now);
    if (stopping_.load()) {
      if (stop_at == absl::InfiniteFuture()) {
        stop_at = now + absl::Nanoseconds(grace_nanos_.load());
      }
      if (now >= stop_at || in_flight() == 0) break;
    }
    if (moved || queue_.size() > 0) continue;
    absl::Duration sleep = std::min({agent_->NextDeadline() - now, stop_at - now, kIdleSleep});
    if (!undelivered_.empty()) sleep = std::min(sleep, kRedeliverPause);
    if (in_flight() > 0) sleep = std::min(sleep, kPublishInterval);
    if (sleep > absl::ZeroDuration()) channel_->WaitForActivity(sleep);
  }
}

void TransferLoop::Apply(SendSpec spec) {
  if (absl::Status started = agent_->StartSend(spec); !started.ok()) FailSend(spec, started);
}

void TransferLoop::FailSend(const SendSpec& spec, const absl::Status& why) {
  SendEnded ended{spec.transfer, spec.request, spec.attempt, why};
  Observe(ended);
  undelivered_.push_back(TransferEvent(std::move(ended)));
}

void TransferLoop::Apply(OfferCommand command) {
  // NOT_FOUND: the send has ended, its report is on the way.
  const absl::Status offered = agent_->Offer(command.transfer, command.begin_token,
                                             command.end_token, std::move(command.blocks));
  if (!offered.ok() && !absl::IsNotFound(offered)) agent_->CancelSend(command.transfer, offered);
}

void TransferLoop::Apply(FinishCommand command) {
  const absl::Status finished = agent_->FinishSend(command.transfer, command.first);
  if (!finished.ok() && !absl::IsNotFound(finished)) {
    agent_->CancelSend(command.transfer, finished);
  }
}

void TransferLoop::Apply(CancelCommand command) {
  if (command.send) {
    agent_->CancelSend(command.transfer, std::move(command.reason));
  } else {
    agent_->CancelReceive(command.transfer, std::move(command.reason));
  }
}

void TransferLoop::Apply(ReceiveSpec spec) {
  undelivered_.push_back(
      ReserveAnswer{spec.request, spec.attempt, agent_->Reserve(spec), channel_->LocalAddress()});
}

void TransferLoop::Apply(FetchSpec spec) {
  undelivered_.push_back(ReserveAnswer{spec.into.request, spec.into.attempt, agent_->Fetch(spec)});
}

void TransferLoop::Observe(const TransferEvent& event) {
  if (const auto* sent = std::get_if<SendEnded>(&event)) {
    metrics_->TransferEnded(TransferDirection::kSend, TransportOfAll(), sent->status,
                            sent->duration);
  } else if (const auto* received = std::get_if<Received>(&event)) {
    const std::string transport = TransportOfAll();
    metrics_->TransferEnded(TransferDirection::kReceive, transport, absl::OkStatus(),
                            received->duration);
    if (!received->fetched) metrics_->TransferExposed(transport, received->exposed);
  } else if (const auto* ended = std::get_if<ReceiveEnded>(&event);
             ended != nullptr && !ended->status.ok()) {
    metrics_->TransferEnded(TransferDirection::kReceive, TransportOfAll(), ended->status,
                            absl::ZeroDuration());
  }
}

void TransferLoop::Deliver() {
  while (!undelivered_.empty() && report_(undelivered_.front())) undelivered_.pop_front();
}

void TransferLoop::PublishStats(absl::Time now) {
  next_publish_ = now + kPublishInterval;
  const TransferStats stats = agent_->Stats();
  in_flight_.store(stats.sends_in_flight + stats.receives_in_flight, std::memory_order_relaxed);
  metrics_->TransfersInFlight(stats.sends_in_flight, stats.receives_in_flight);
  metrics_->TransferFaults(stats.messages_refused, stats.checksum_failures, stats.resends);
  std::vector<PeerTransport> transports = agent_->Transports();
  absl::flat_hash_map<PeerId, KnownEndpoint> endpoints;
  for (const PeerTransport& peer : transports) {
    if (peer.transport.empty()) continue;
    KnownEndpoint& known = endpoints[peer.id];
    if (const auto before = known_endpoints_.find(peer.id); before != known_endpoints_.end()) {
      known = std::move(before->second);
    }
    metrics_->TransferBytes(TransferDirection::kSend, peer.transport,
                            peer.bytes_sent - known.bytes_sent);
    metrics_->TransferBytes(TransferDirection::kReceive, peer.transport,
                            peer.bytes_received - known.bytes_received);
    known.bytes_sent = peer.bytes_sent;
    known.bytes_received = peer.bytes_received;
    if (known.transport != peer.transport) {
      known.transport = peer.transport;
      SLUICE_LOG(Info) << "KV transfer with " << peer.peer << " runs over " << peer.transport
                       << (peer.lanes.empty() ? "" : " (") << peer.lanes
                       << (peer.lanes.empty() ? "" : ")");
    }
  }
  known_endpoints_ = std::move(endpoints);
  board_->PublishTransports(std::move(transports));
}

void TransferLoop::Beat(absl::Time now) {
  last_beat_nanos_.store(absl::ToUnixNanos(now), std::memory_order_relaxed);
}

std::string TransferLoop::TransportOfAll() const {
  std::string all;
  for (const PeerTransport& peer : agent_->Transports()) {
    if (peer.transport.empty() || peer.transport == all) continue;
    if (!all.empty()) return "other";
    all = peer.transport;
  }
  return all.empty() ? "other" : all;
}

}  // namespace sluice::worker
