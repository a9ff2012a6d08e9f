#include "bench/router_bench/fleet_probe.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "bench/router_bench/token_ledger.h"
#include "common/clock.h"
#include "services/rpc/attach_client.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/fleet.grpc.pb.h"

namespace sluice::bench {
namespace {

constexpr int kMessages = 300;
constexpr absl::Duration kPause = absl::Milliseconds(1);
constexpr absl::Duration kAttachTimeout = absl::Seconds(5);

// Welcomes whoever attaches and notes how long each token took.
class Receiver final : public v1::Fleet::CallbackService {
 public:
  void MarkSent() { sent_ns_ = NowNanoseconds(); }
  std::vector<double> delays_us() {
    absl::MutexLock lock(&mu_);
    return delays_us_;
  }

 private:
  class Session final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage> {
   public:
    explicit Session(Receiver* receiver) : receiver_(receiver) { StartRead(&message_); }
    void OnReadDone(bool ok) override {
      if (!ok) return Finish(grpc::Status::OK);
      if (message_.has_tokens()) receiver_->NoteArrival();
      if (message_.has_register_()) {
        welcome_.mutable_welcome()->set_router_id("probe");
        StartWrite(&welcome_);
      }
      StartRead(&message_);
    }
    void OnDone() override { delete this; }

   private:
    Receiver* const receiver_;
    v1::WorkerMessage message_;
    v1::RouterMessage welcome_;
  };

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage>* Attach(
      grpc::CallbackServerContext*) override {
    return new Session(this);
  }
  void NoteArrival() {
    const double delay = static_cast<double>(NowNanoseconds() - sent_ns_) / 1000;
    absl::MutexLock lock(&mu_);
    delays_us_.push_back(delay);
  }

  std::atomic<int64_t> sent_ns_{0};
  absl::Mutex mu_;
  std::vector<double> delays_us_ ABSL_GUARDED_BY(mu_);
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

v1::WorkerMessage OneToken() {
  v1::WorkerMessage message;
  v1::OutputToken* token = message.mutable_tokens()->add_tokens();
  token->set_request_id(std::string(16, 'r'));
  token->set_attempt(1);
  token->set_index(100);
  token->set_token_id(100);
  return message;
}

}  // namespace

double FleetStreamMicroseconds() {
  Receiver receiver;
  grpc::ServerBuilder builder;
  int port = 0;
  rpc::ConfigureServer(&builder, "127.0.0.1", 0, &port);
  builder.RegisterService(&receiver);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 0;
  Worker worker;
  rpc::AttachOptions attach;
  attach.router_address = absl::StrCat("127.0.0.1:", port);
  const std::unique_ptr<rpc::AttachClient> client =
      rpc::AttachClient::Start(std::move(attach), &worker);
  const absl::Time give_up_at = MonotonicNow() + kAttachTimeout;
  while (!client->attached() && MonotonicNow() < give_up_at) absl::SleepFor(kPause);
  for (int i = 0; i < kMessages && client->attached(); ++i) {
    absl::SleepFor(kPause);
    v1::WorkerMessage message = OneToken();
    receiver.MarkSent();
    client->Send(worker.session(), std::move(message));
  }
  client->Stop();
  server->Shutdown();
  std::vector<double> delays = receiver.delays_us();
  if (delays.empty()) return 0;
  std::nth_element(delays.begin(), delays.begin() + static_cast<long>(delays.size() / 2),
                   delays.end());
  return delays[delays.size() / 2];
}

}  // namespace sluice::bench
