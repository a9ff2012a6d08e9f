// The transfer thread: owns the channel and the transfer agent, and is the only one to call them.
// The engine thread posts commands to a bounded queue, which wakes the channel; reports go back
// through `report`. Sleeps in the channel until something arrives or the agent's next deadline, at
// most 1 s.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "common/bounded_queue.h"
#include "common/clock.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/kv_channel.h"
#include "services/worker_runtime/load_board.h"
#include "services/worker_runtime/transfer_port.h"
#include "services/worker_runtime/worker_metrics.h"

namespace sluice::worker {

class TransferLoop final : public TransferPort {
 public:
  using Report = std::variant<ReserveAnswer, TransferEvent>;
  // False: the taker has no room now; the report is offered again a little later, in order.
  using ReportFn = std::function<bool(const Report&)>;

  // `on_overflow` is called once if the thread no longer drains its queue: the worker cannot go on.
  TransferLoop(std::unique_ptr<KvChannel> channel, std::unique_ptr<TransferAgent> agent,
               const Clock* clock, LoadBoard* board, WorkerMetrics* metrics, ReportFn report,
               std::function<void()> on_overflow, size_t queue_capacity = 1 << 16);
  ~TransferLoop() override;  // stops

  void Start();
  // Keeps going until no transfer is in flight or `grace` has passed (peers wait for our last
  // acknowledgements), then joins. Idempotent.
  void Stop(absl::Duration grace);
  // Transfers that have not ended, both directions. Any thread.
  int in_flight() const { return in_flight_.load(std::memory_order_relaxed); }
  // Since the thread last finished a round: at most about a second when idle. Grows while a call
  // into the channel does not return. Any thread.
  absl::Duration HeartbeatAge() const;

  void StartSend(SendSpec spec) override;
  void Offer(TransferId transfer, int begin_token, int end_token,
             std::vector<absl::Span<const uint8_t>> blocks) override;
  void FinishSend(TransferId transfer, FirstToken first) override;
  void CancelSend(TransferId transfer, absl::Status reason) override;
  void Reserve(ReceiveSpec spec) override;
  void Fetch(FetchSpec spec) override;
  void CancelReceive(TransferId transfer, absl::Status reason) override;

 private:
  struct OfferCommand {
    TransferId transfer;
    int begin_token;
    int end_token;
    std::vector<absl::Span<const uint8_t>> blocks;
  };
  struct FinishCommand {
    TransferId transfer;
    FirstToken first;
  };
  struct CancelCommand {
    TransferId transfer;
    absl::Status reason;
    bool send;
  };
  using Command =
      std::variant<SendSpec, OfferCommand, FinishCommand, CancelCommand, ReceiveSpec, FetchSpec>;

  void Post(Command command);
  void Run();
  void Apply(Command command);
  void Apply(SendSpec spec);
  void Apply(OfferCommand command);
  void Apply(FinishCommand command);
  void Apply(CancelCommand command);
  void Apply(ReceiveSpec spec);
  void Apply(FetchSpec spec);
  void FailSend(const SendSpec& spec, const absl::Status& why);
  void Observe(const TransferEvent& event);
  void Deliver();
  void PublishStats(absl::Time now);
  void Beat(absl::Time now);
  // Of the peers we moved bytes with, when they agree; "other" when they differ.
  std::string TransportOfAll() const;

  // Constant after construction.
  const std::unique_ptr<KvChannel> channel_;  // before agent_: outlives it
  const std::unique_ptr<TransferAgent> agent_;
  const Clock* const clock_;
  LoadBoard* const board_;
  WorkerMetrics* const metrics_;
  const ReportFn report_;
  const std::function<void()> on_overflow_;

  BoundedQueue<Command> queue_;
  std::atomic<bool> overflowed_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> grace_nanos_{0};
  std::atomic<int> in_flight_{0};
  std::atomic<int64_t> last_beat_nanos_;  // of clock_

  // Owned by thread_.
  std::deque<Report> undelivered_;  // at most a few per transfer
  struct KnownEndpoint {
    std::string transport;  // as logged
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
  };
  absl::flat_hash_map<PeerId, KnownEndpoint> known_endpoints_;  // those of the last look
  absl::Time next_publish_ = absl::InfinitePast();

  std::thread thread_;
};

}  // namespace sluice::worker
