#include "bench/router_bench/fleet_probe.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "bench/router_bench/token_ledger.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "services/rpc/attach_client.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/fleet.grpc.pb.h"

namespace sluice::bench {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(1);
constexpr absl::Duration kAttachTimeout = absl::Seconds(5);

// Welcomes whoever attaches and notes how long each token took.
class Receiver final : public v1::Fleet::CallbackService {
 public:
  void MarkSent(int64_t index) { sent_.MarkSent(0, index, NowNanoseconds()); }
  std::vector<int64_t> TakeDelays() {
    absl::MutexLock lock(&mu_);
    return std::exchange(delays_ns_, {});
  }

 private:
  class Session final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage> {
   public:
    explicit Session(Receiver* receiver) : receiver_(receiver) { StartRead(&message_); }
    void OnReadDone(bool ok) override {
      if (!ok) return Finish(grpc::Status::OK);
      for (const v1::OutputToken& token : message_.tokens().tokens()) {
        receiver_->NoteArrival(static_cast<int64_t>(token.index()));
      }
      if (message_.has_register_()) {
        answer_.mutable_welcome()->set_router_id("probe");
        StartWrite(&answer_);
      } else if (message_.has_load() && !writing_.exchange(true)) {
        answer_.mutable_heartbeat();
        StartWrite(&answer_);
      }
      StartRead(&message_);
    }
    void OnWriteDone(bool) override { writing_ = false; }
    void OnDone() override { delete this; }

   private:
    Receiver* const receiver_;
    v1::WorkerMessage message_;
    v1::RouterMessage answer_;
    std::atomic<bool> writing_{true};  // the welcome is the first
  };

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage>* Attach(
      grpc::CallbackServerContext*) override {
    return new Session(this);
  }
  void NoteArrival(int64_t index) {
    const int64_t delay = NowNanoseconds() - sent_.SentAt(0, index);
    absl::MutexLock lock(&mu_);
    delays_ns_.push_back(delay);
  }

  TokenLedger sent_{/*num_streams=*/1};
  absl::Mutex mu_;
  std::vector<int64_t> delays_ns_ ABSL_GUARDED_BY(mu_);
};

class Worker final : public rpc::AttachHandler {
 public:
  v1::WorkerMessage OnConnect(rpc::SessionId) override {
    v1::WorkerMessage message;
    message.mutable_register_()->set_worker_id("probe");
    return message;
  }
  void OnWelcome(rpc::SessionId session, const std::string&) override { session_ = session.value; }
  void OnMessage(rpc::SessionId, const v1::RouterMessage&) override {}
  v1::WorkerMessage OnHeartbeat(rpc::SessionId) override {
    v1::WorkerMessage message;
    message.mutable_load()->set_ready(true);
    return message;
  }
  void OnDisconnect(rpc::SessionId, const absl::Status&) override {}

  rpc::SessionId session() const { return rpc::SessionId(session_); }

 private:
  std::atomic<uint64_t> session_{0};
};

v1::WorkerMessage OneToken(int64_t index) {
  v1::WorkerMessage message;
  v1::OutputToken* token = message.mutable_tokens()->add_tokens();
  token->set_request_id(std::string(16, 'r'));
  token->set_attempt(1);
  token->set_index(static_cast<int32_t>(index));
  token->set_token_id(100);
  return message;
}

class FleetProbeImpl final : public FleetProbe {
 public:
  ~FleetProbeImpl() override {
    if (client_ != nullptr) client_->Stop();
    if (server_ != nullptr) server_->Shutdown();
  }

  absl::Status Attach() {
    grpc::ServerBuilder builder;
    int port = 0;
    rpc::ConfigureServer(&builder, "127.0.0.1", 0, &port);
    builder.RegisterService(&receiver_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::UnavailableError("the probe's gRPC server cannot start");
    rpc::AttachOptions attach;
    attach.router_address = absl::StrCat("127.0.0.1:", port);
    client_ = rpc::AttachClient::Start(std::move(attach), &worker_);
    const absl::Time give_up_at = MonotonicNow() + kAttachTimeout;
    while (!client_->attached()) {
      if (MonotonicNow() >= give_up_at) {
        return absl::DeadlineExceededError("the probe's stream did not come up");
      }
      absl::SleepFor(kPoll);
    }
    return absl::OkStatus();
  }

  void Run(absl::Duration window, absl::Duration interval) override {
    const absl::Time end = MonotonicNow() + window;
    while (MonotonicNow() < end) {
      absl::SleepFor(interval);
      v1::WorkerMessage message = OneToken(next_index_);
      receiver_.MarkSent(next_index_++);
      client_->Send(worker_.session(), std::move(message));
    }
  }

  std::vector<int64_t> TakeDelays() override { return receiver_.TakeDelays(); }

 private:
  Receiver receiver_;
  Worker worker_;
  int64_t next_index_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<rpc::AttachClient> client_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FleetProbe>> FleetProbe::Start() {
  auto probe = std::make_unique<FleetProbeImpl>();
  SLUICE_RETURN_IF_ERROR(probe->Attach());
  return probe;
}

}  // namespace sluice::bench
