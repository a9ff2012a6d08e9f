#include "services/router/grpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/monotonic_cond_var.h"
#include "services/router/grpc/generation_service.h"

namespace sluice::router {
namespace {

constexpr char kServiceName[] = "sluice.v1.Generation";
constexpr absl::Duration kHealthInterval = absl::Milliseconds(250);
// Clients may ping an idle connection this often; gRPC's own bound of five minutes cuts off
// proxies.
constexpr int kMinPingIntervalMs = 20 * 1000;

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

class GrpcServerImpl : public GrpcServer {
 public:
  GrpcServerImpl(const GrpcOptions& options, ApiContext* context) : service_(&shared_) {
    shared_.options = options;
    shared_.context = context;
    // An accepted stream has at most a start, a wake-up, a cancel and an end on their way; refused
    // ones, which nothing bounds, have nothing.
    shared_.front = std::make_unique<TaskPool>("router-grpc", 1,
                                               static_cast<size_t>(options.max_streams) * 8 + 1024);
  }

  ~GrpcServerImpl() override {
    shared_.draining = true;
    {
      absl::MutexLock lock(&health_mu_);
      stop_health_ = true;
      health_stops_.SignalAll();
    }
    if (health_thread_.joinable()) health_thread_.join();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    shared_.prepares.AwaitZero(absl::InfiniteDuration());
    shared_.streams.AwaitZero(absl::InfiniteDuration());
    server_.reset();
  }

  absl::Status Start() {
    const GrpcOptions& options = shared_.options;
    const std::string address = JoinHostPort(options.host, options.port);
    grpc::EnableDefaultHealthCheckService(true);
    if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_receive_bytes));
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a taken port is an error
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_time));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                               Milliseconds(options.keepalive_timeout));
    // Idle connections ping and are pinged, too: without it gRPC bears a client's pings there only
    // every two hours.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kMinPingIntervalMs);
    if (options.max_connection_age != absl::InfiniteDuration()) {
      builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                                 Milliseconds(options.max_connection_age));
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat(
          "grpc address ", address,
          " (grpc_host, grpc_port): cannot listen; already in use? Port 0 takes a free one"));
    }
    ReportHealth();
    health_thread_ = std::thread([this] {
      while (!AwaitHealthStop()) {
        ReportHealth();
        shared_.writes.Check(MonotonicNow(), shared_.options.write_timeout);
      }
    });
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void Drain(absl::Duration timeout) override {
    shared_.draining = true;
    ReportHealth();
    if (!shared_.streams.AwaitZero(timeout)) {
      SLUICE_LOG(Warning) << "drain: " << shared_.streams.Get()
                          << " gRPC streams are cut off after " << timeout;
    }
    // Also ends health watches and the like, which never end by themselves.
    server_->Shutdown(std::chrono::system_clock::now());
  }

 private:
  // False after kHealthInterval.
  bool AwaitHealthStop() {
    absl::MutexLock lock(&health_mu_);
    return health_stops_.Await(&health_mu_, absl::Condition(&stop_health_), kHealthInterval);
  }

  void ReportHealth() {
    const bool serving =
        !shared_.draining && shared_.context->dispatcher().NotReadyReason().empty();
    grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
    if (health == nullptr) return;
    health->SetServingStatus("", serving);
    health->SetServingStatus(kServiceName, serving);
  }

  GrpcServerShared shared_;
  GenerationService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  absl::Mutex health_mu_;
  MonotonicCondVar health_stops_;
  bool stop_health_ ABSL_GUARDED_BY(health_mu_) = false;
  std::thread health_thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> StartGrpcServer(const GrpcOptions& options,
                                                            ApiContext* context) {
  if (options.max_streams < 1 || options.max_stream_buffer_bytes < 1024 ||
      options.max_receive_bytes < 1024 || options.max_receive_bytes > (int64_t{1} << 30)) {
    return absl::InvalidArgumentError(
        "grpc: max_streams must be >= 1, max_stream_buffer_bytes >= 1024, and max_receive_bytes in "
        "1 KiB .. 1 GiB");
  }
  auto server = std::make_unique<GrpcServerImpl>(options, context);
  const absl::Status status = server->Start();
  if (!status.ok()) return status;
  return std::unique_ptr<GrpcServer>(std::move(server));
}

}  // namespace sluice::router
