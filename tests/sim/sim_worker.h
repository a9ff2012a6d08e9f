// One life of a worker process in the cluster simulation: the real engine (over FakeModel), role
// handler and transfer agent, driven by virtual time instead of threads. What
// services/worker_runtime does with an engine thread, a transfer thread and queues between them,
// this does with two queues and two wake times. One thread.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/sim_channel.h"
#include "services/router/core/messages.h"
#include "services/worker_runtime/request_handler.h"
#include "services/worker_runtime/worker_metrics.h"
#include "tests/support/fake_engine.h"

namespace sluice::testing {

struct SimWorkerOptions {
  std::string name;
  Incarnation incarnation;
  router::WorkerRole role = router::WorkerRole::kBoth;
  int64_t num_blocks = 0;
  SchedulerOptions scheduler;
  TransferOptions transfers;
  absl::Duration step_time = absl::Milliseconds(2);  // of one engine step; a slow node has more
};

class SimWorker : public worker::RouterLink, public worker::TransferPort {
 public:
  // `uplink` takes what the worker says on one of its streams.
  using Uplink = std::function<void(router::SessionId, router::Event)>;

  SimWorker(SimWorkerOptions options, SimNetwork* network, worker::WorkerMetrics* metrics,
            Uplink uplink);

  router::WorkerInfo Info() const;
  // A new stream is told the whole prefix cache, later reports only what changed.
  router::WorkerLoad LoadReport(bool first_of_stream);

  // Posts to the engine loop, in order.
  void Post(std::function<void(worker::RequestHandler*)> command);

  // When Run has something to do next.
  absl::Time WakeTime() const;
  // One round of whichever loop is due.
  void Run();

  // "" while the worker's books are in order.
  std::string CheckIntegrity() const;
  // "" when nothing is held for any request any more.
  std::string CheckIdle() const;

  const SimWorkerOptions& options() const { return options_; }
  SimChannel* channel() { return channel_.get(); }
  bool paused = false;

 private:
  // RouterLink.
  void SendGrant(rpc::SessionId session, const rpc::GrantTerms& grant) override;
  void SendBusy(rpc::SessionId session, const rpc::BusyAnswer& busy) override;
  void SendTokens(rpc::SessionId session,
                  const std::vector<rpc::OutputTokenEvent>& tokens) override;
  void SendKvReady(rpc::SessionId session, const rpc::KvReadyEvent& event) override;
  void SendEnded(rpc::SessionId session, const rpc::RequestEndedEvent& event) override;
  void SendPreempted(rpc::SessionId session, const SequenceKey& key) override;
  // TransferPort.
  void StartSend(SendSpec spec) override;
  void Offer(TransferId transfer, int begin_token, int end_token,
             std::vector<absl::Span<const uint8_t>> blocks) override;
  void FinishSend(TransferId transfer, FirstToken first) override;
  void CancelSend(TransferId transfer, absl::Status reason) override;
  void Reserve(ReceiveSpec spec) override;
  void Fetch(FetchSpec spec) override;
  void CancelReceive(TransferId transfer, absl::Status reason) override;

  bool EngineHasWork() const;
  void RunTransferLoop();
  void RunEngineLoop();

  const SimWorkerOptions options_;
  SimNetwork* const network_;
  const Uplink uplink_;
  std::unique_ptr<SimChannel> channel_;
  FakeEngine fake_;                       // its blocks outlive the agent
  std::unique_ptr<TransferAgent> agent_;  // gone before its channel
  std::unique_ptr<worker::RequestHandler> handler_;

  std::deque<std::function<void()>> to_transfer_;
  std::deque<std::function<void(worker::RequestHandler*)>> to_engine_;
  absl::Time engine_free_at_;  // the step that runs now ends then
  bool stalled_ = false;       // the last step had nothing it could do
  std::set<BlockHash> cached_;
  PrefixCacheChanges changes_;
};

}  // namespace sluice::testing
