// One life of a worker process in the cluster simulation: the real engine (over FakeModel), role
// handler and transfer agent, driven by virtual time instead of threads. What
// services/worker_runtime does with an engine thread, a transfer thread and queues between them,
// this does with two queues and two wake times. One thread.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/sim_channel.h"
#include "services/router/core/messages.h"
#include "services/worker_runtime/request_handler.h"
#include "services/worker_runtime/worker_metrics.h"
#include "tests/sim/node_clock.h"
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
  // A stream is first told the whole prefix cache, later what changed since its last report.
  router::WorkerLoad LoadReport(router::SessionId session);
  void ForgetStream(router::SessionId session) { known_.erase(session); }

  // Posts to the engine loop, in order.
  void Post(std::function<void(worker::RequestHandler*)> command);

  // When Run has something to do next, on the network's clock.
  absl::Time WakeTime() const;
  // One round of whichever loop is due.
  void Run();

  // "" while the worker's books are in order, no block is free that the network may still touch,
  // and no sequence was computed over anything but its own tokens.
  std::string CheckIntegrity() const;
  bool Holds(const RequestId& request) const;
  // "" when nothing is held for any request any more.
  std::string CheckIdle() const;

  const SimWorkerOptions& options() const { return options_; }
  SimChannel* channel() { return channel_.get(); }
  NodeClock& clock() { return clock_; }
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
  // Whether the KV that the sequence is said to have is that of its tokens.
  void CheckContent(const SequenceKey& key);
  std::string CheckPendingOperations() const;

  const SimWorkerOptions options_;
  SimNetwork* const network_;
  const Uplink uplink_;
  NodeClock clock_;
  std::unique_ptr<SimChannel> channel_;
  FakeEngine fake_;                       // its blocks outlive the agent
  std::unique_ptr<TransferAgent> agent_;  // gone before its channel
  std::unique_ptr<worker::RequestHandler> handler_;

  std::deque<std::function<void()>> to_transfer_;
  std::deque<std::function<void(worker::RequestHandler*)>> to_engine_;
  absl::Time engine_free_at_;  // the step that runs now ends then, on the network's clock
  bool stalled_ = false;       // the last step had nothing it could do
  std::set<BlockHash> cached_;
  std::map<router::SessionId, std::set<BlockHash>> known_;  // what each router was told of cached_
  std::string foreign_bytes_;                               // the first that were found
};

}  // namespace sluice::testing
