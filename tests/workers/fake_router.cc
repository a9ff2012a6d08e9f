#include "tests/workers/fake_router.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/fleet.grpc.pb.h"

namespace sluice::testing {

struct FakeRouter::Connection {
  grpc::ServerContext* context = nullptr;
  grpc::ServerReaderWriter<v1::RouterMessage, v1::WorkerMessage>* stream = nullptr;
  std::string worker_id;
  absl::Mutex write_mu;  // gRPC allows one write at a time; after FakeRouter::mu_
};

class FakeRouter::Service final : public v1::Fleet::Service {
 public:
  explicit Service(FakeRouter* router) : router_(router) {}

  grpc::Status Attach(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::RouterMessage, v1::WorkerMessage>* stream) override {
    Connection connection;
    connection.context = context;
    connection.stream = stream;
    v1::WorkerMessage message;
    if (!stream->Read(&message) || !message.has_register_()) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the first message must be Register");
    }
    connection.worker_id = message.register_().worker_id();
    if (Register(&connection, message.register_())) {
      while (stream->Read(&message)) Hear(connection.worker_id, message);
    }
    absl::MutexLock lock(&router_->mu_);
    auto& all = router_->connections_;
    all.erase(std::remove(all.begin(), all.end(), &connection), all.end());
    return grpc::Status::OK;
  }

 private:
  bool Register(Connection* connection, const v1::Register& registration) {
    v1::RouterMessage answer;
    answer.mutable_welcome()->set_router_id("fake-router");
    absl::MutexLock lock(&router_->mu_);
    ++router_->num_registrations_;
    answer.mutable_welcome()->set_error(router_->refusal_);
    if (!router_->muted_) connection->stream->Write(answer);
    if (!router_->refusal_.empty()) return false;
    router_->registrations_[connection->worker_id] = registration;
    router_->connections_.push_back(connection);
    return true;
  }

  void Hear(const std::string& worker_id, const v1::WorkerMessage& message) {
    absl::MutexLock lock(&router_->mu_);
    router_->mu_.Await(absl::Condition(
        +[](FakeRouter* r) ABSL_NO_THREAD_SAFETY_ANALYSIS {  // Await calls it with mu_ held.
          return !r->reading_stopped_ || r->stopping_;
        },
        router_));
    if (message.has_load()) {
      router_->loads_[worker_id] = message.load();
    } else {
      router_->heard_.push_back({worker_id, message});
    }
  }

  FakeRouter* const router_;
};

FakeRouter::FakeRouter(int port) : service_(std::make_unique<Service>(this)) {
  grpc::ServerBuilder builder;
  rpc::ConfigureServer(&builder, "127.0.0.1", port, &port_);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) std::abort();
  heartbeats_ = std::thread([this] { HeartbeatLoop(); });
}

FakeRouter::~FakeRouter() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  heartbeats_.join();
  server_->Shutdown(std::chrono::system_clock::now());
}

std::string FakeRouter::address() const { return absl::StrCat("127.0.0.1:", port_); }

void FakeRouter::HeartbeatLoop() {
  v1::RouterMessage heartbeat;
  heartbeat.mutable_heartbeat();
  absl::MutexLock lock(&mu_);
  while (!stopping_) {
    if (!muted_) {
      for (Connection* connection : connections_) {
        absl::MutexLock write_lock(&connection->write_mu);
        connection->stream->Write(heartbeat);
      }
    }
    mu_.AwaitWithTimeout(absl::Condition(&stopping_), absl::Milliseconds(200));
  }
}

void FakeRouter::RefuseWith(std::string error) {
  absl::MutexLock lock(&mu_);
  refusal_ = std::move(error);
}

void FakeRouter::Mute(bool muted) {
  absl::MutexLock lock(&mu_);
  muted_ = muted;
}

void FakeRouter::StopReading(bool stopped) {
  absl::MutexLock lock(&mu_);
  reading_stopped_ = stopped;
}

void FakeRouter::DropStreams() {
  absl::MutexLock lock(&mu_);
  for (Connection* connection : connections_) connection->context->TryCancel();
}

bool FakeRouter::WaitForWorker(const std::string& worker_id, absl::Duration timeout) {
  const auto attached = [&] {
    mu_.AssertReaderHeld();
    return std::any_of(connections_.begin(), connections_.end(),
                       [&](const Connection* c) { return c->worker_id == worker_id; });
  };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&attached), timeout);
}

bool FakeRouter::IsAttached(const std::string& worker_id) const {
  absl::MutexLock lock(&mu_);
  return std::any_of(connections_.begin(), connections_.end(),
                     [&](const Connection* c) { return c->worker_id == worker_id; });
}

v1::Register FakeRouter::registration(const std::string& worker_id) const {
  absl::MutexLock lock(&mu_);
  const auto entry = registrations_.find(worker_id);
  return entry == registrations_.end() ? v1::Register() : entry->second;
}

int FakeRouter::num_registrations() const {
  absl::MutexLock lock(&mu_);
  return num_registrations_;
}

bool FakeRouter::Send(const std::string& worker_id, const v1::RouterMessage& message) {
  absl::MutexLock lock(&mu_);
  for (Connection* connection : connections_) {
    if (connection->worker_id != worker_id) continue;
    absl::MutexLock write_lock(&connection->write_mu);
    return connection->stream->Write(message);
  }
  return false;
}

v1::WorkerMessage FakeRouter::WaitFor(const std::string& what,
                                      const std::function<bool(const Heard&)>& predicate,
                                      absl::Duration timeout) {
  v1::WorkerMessage found;
  const auto have = [&] {
    mu_.AssertReaderHeld();
    for (const Heard& heard : heard_) {
      if (predicate(heard)) {
        found = heard.message;
        return true;
      }
    }
    return false;
  };
  absl::MutexLock lock(&mu_);
  if (!mu_.AwaitWithTimeout(absl::Condition(&have), timeout)) {
    std::string all;
    for (const Heard& heard : heard_) {
      absl::StrAppend(&all, "\n  ", heard.worker_id, ": ", heard.message.ShortDebugString());
    }
    ADD_FAILURE() << "waited in vain for " << what << "; heard:" << all;
  }
  return found;
}

std::vector<FakeRouter::Heard> FakeRouter::heard() const {
  absl::MutexLock lock(&mu_);
  return heard_;
}

v1::LoadReport FakeRouter::last_load(const std::string& worker_id) const {
  absl::MutexLock lock(&mu_);
  const auto entry = loads_.find(worker_id);
  return entry == loads_.end() ? v1::LoadReport() : entry->second;
}

}  // namespace sluice::testing
