#include "services/router/fleet/fleet_server.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/random.h"
#include "services/router/fleet/fleet_session.h"
#include "services/router/fleet/wire.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/fleet.grpc.pb.h"

namespace sluice::router {
namespace {

// What Shutdown gives the streams to end in order.
constexpr std::chrono::seconds kShutdownTimeout{1};

// Answers a call that cannot be served.
class RefusedCall final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage> {
 public:
  explicit RefusedCall(grpc::Status status) { Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

class FleetServerImpl final : public FleetServer, public v1::Fleet::CallbackService {
 public:
  FleetServerImpl(const FleetServerOptions& options, FleetListener* listener)
      : options_(options),
        session_options_{options.read_window,        options.max_queued_messages,
                         options.max_queued_bytes,   options.max_message_bytes,
                         options.heartbeat_interval, options.write_timeout,
                         options.register_timeout},
        identity_{options.router_id, Incarnation(RandomUint64())},
        listener_(listener) {}

  ~FleetServerImpl() override { Shutdown(); }

  absl::Status Listen() {
    grpc::ServerBuilder builder;
    rpc::ConfigureServer(&builder, options_.host, options_.port, &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen for workers on ",
                                                 JoinHostPort(options_.host, options_.port),
                                                 " (fleet_host, fleet_port): address in use?"));
    }
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void Shutdown() override {
    std::vector<std::shared_ptr<FleetSession>> sessions;
    {
      absl::MutexLock lock(&mu_);
      shut_down_ = true;
      sessions = SessionsLocked();
    }
    for (const auto& session : sessions) {
      session->Close(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the router is shutting down"));
    }
    sessions.clear();
    // After the deadline gRPC cancels what is left; it returns when every OnDone has run.
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + kShutdownTimeout);
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(
        +[](FleetServerImpl* self)
             ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->sessions_.empty(); },
        this));
  }

  // ---- FleetPort

  void Send(Action action) override {
    const std::shared_ptr<FleetSession> session = Find(Destination(action));
    if (session == nullptr) return;
    if (const auto* close = std::get_if<CloseSession>(&action)) {
      session->Abort(close->reason);
      return;
    }
    v1::RouterMessage message;
    EncodeAction(identity_, std::move(action), &message);
    const std::string refusal = message.has_welcome() ? message.welcome().error() : "";
    session->Send(std::move(message));
    if (!refusal.empty()) {
      session->Close(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, refusal));
    }
  }

  void Handled(SessionId id) override {
    if (const std::shared_ptr<FleetSession> session = Find(id)) session->Handled();
  }

  void Tick(absl::Time now) override {
    std::vector<std::shared_ptr<FleetSession>> sessions;
    {
      absl::MutexLock lock(&mu_);
      sessions = SessionsLocked();
    }
    for (const auto& session : sessions) session->Tick(now);
  }

 private:
  grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage>* Attach(
      grpc::CallbackServerContext* context) override {
    std::shared_ptr<FleetSession> session;
    {
      absl::MutexLock lock(&mu_);
      if (shut_down_) {
        return new RefusedCall(
            grpc::Status(grpc::StatusCode::UNAVAILABLE, "the router is shutting down"));
      }
      if (static_cast<int>(sessions_.size()) >= options_.max_sessions) {
        return new RefusedCall(
            grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                         absl::StrCat("the router has ", sessions_.size(), " worker streams")));
      }
      const SessionId id(++last_session_);
      session = std::make_shared<FleetSession>(id, session_options_, context, listener_,
                                               [this](SessionId done) { Forget(done); });
      sessions_.emplace(id, session);
    }
    FleetSession* reactor = session.get();
    reactor->Begin(std::move(session));
    return reactor;
  }

  void Forget(SessionId id) {
    absl::MutexLock lock(&mu_);
    sessions_.erase(id);
  }

  std::shared_ptr<FleetSession> Find(SessionId id) {
    absl::MutexLock lock(&mu_);
    const auto it = sessions_.find(id);
    return it == sessions_.end() ? nullptr : it->second;
  }

  std::vector<std::shared_ptr<FleetSession>> SessionsLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::vector<std::shared_ptr<FleetSession>> sessions;
    sessions.reserve(sessions_.size());
    for (const auto& [id, session] : sessions_) sessions.push_back(session);
    return sessions;
  }

  // Constant after Listen.
  const FleetServerOptions options_;
  const FleetSessionOptions session_options_;
  const RouterIdentity identity_;
  FleetListener* const listener_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;

  absl::Mutex mu_;
  absl::flat_hash_map<SessionId, std::shared_ptr<FleetSession>> sessions_ ABSL_GUARDED_BY(mu_);
  uint64_t last_session_ ABSL_GUARDED_BY(mu_) = 0;
  bool shut_down_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FleetServer>> FleetServer::Start(const FleetServerOptions& options,
                                                                FleetListener* listener) {
  auto server = std::make_unique<FleetServerImpl>(options, listener);
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

}  // namespace sluice::router
