// sluice-router: parses the configuration, wires dispatcher, fleet server and the public fronts,
// serves until SIGTERM or SIGINT (and drain_delay longer), drains and exits. A second signal ends
// the process at once.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/exit_guard.h"
#include "common/file_limit.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/port_file.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "metrics/admin_server.h"
#include "metrics/metrics.h"
#include "modelspec/model_spec.h"
#include "services/router/api/api_context.h"
#include "services/router/fleet/dispatcher_thread.h"
#include "services/router/fleet/fleet_server.h"
#include "services/router/grpc/grpc_server.h"
#include "services/router/http/http_server.h"
#include "services/router/http_share_of_files.h"
#include "services/router/router_config.h"
#include "services/router/router_metrics.h"
#include "services/rpc/fleet_codec.h"

namespace sluice::router {
namespace {

constexpr absl::Duration kSameSignal = absl::Milliseconds(300);
// What the threads' ends may take beyond drain_timeout.
constexpr absl::Duration kStopGrace = absl::Seconds(10);

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

LogLevel LevelByName(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

std::string RouterId() {
  char host[256] = {};
  if (gethostname(host, sizeof(host) - 1) != 0) host[0] = '\0';
  return absl::StrCat(host, ":", getpid());
}

DispatcherOptions MakeDispatcherOptions(const RouterConfig& config) {
  DispatcherOptions options;
  CoreOptions& core = options.core;
  core.model = config.served_model_name;
  core.protocol_version = std::string(rpc::kProtocolVersion);
  core.max_queued_requests = config.max_queued_requests;
  core.max_running_requests = config.max_running_requests;
  core.queue_timeout = config.queue_timeout;
  core.request_timeout = config.request_timeout;
  core.recovery = config.recovery;
  core.worker_timeout = config.worker_timeout;
  core.no_worker_timeout = config.no_worker_timeout;
  core.max_lost_workers = config.max_lost_workers;
  options.max_mailbox_requests = config.max_queued_requests + config.max_running_requests + 64;
  return options;
}

absl::StatusOr<ApiOptions> MakeApiOptions(const RouterConfig& config) {
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(config.model));
  ApiOptions options;
  options.served_model_names = {config.served_model_name};
  options.max_model_len = static_cast<int>(spec.max_position_embeddings);
  options.version = Version();
  options.request_timeout = config.request_timeout;
  return options;
}

// The next SIGTERM or SIGINT. A terminal and a supervisor may both deliver one Ctrl-C: what comes
// within `kSameSignal` of it counts as the same; after that a signal ends the process at once.
int AwaitStopSignal(const std::function<void()>& at_once) {
  const sigset_t signals = StopSignals();
  int signal = 0;
  sigwait(&signals, &signal);
  at_once();
  for (const absl::Time end = MonotonicNow() + kSameSignal; MonotonicNow() < end;) {
    const timespec left = absl::ToTimespec(end - MonotonicNow());
    sigtimedwait(&signals, nullptr, &left);
  }
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  return signal;
}

// Both fronts finish what runs, side by side, within `timeout` in all.
void Drain(DispatcherThread* dispatcher, HttpServer* http, GrpcServer* grpc,
           absl::Duration timeout) {
  const absl::Time give_up_at = MonotonicNow() + timeout;
  dispatcher->StartDrain();
  std::thread http_drain([&] { http->Drain(timeout); });
  grpc->Drain(timeout);
  http_drain.join();
  const absl::Duration left = std::max(give_up_at - MonotonicNow(), absl::ZeroDuration());
  if (!dispatcher->WaitUntilIdle(left)) {
    SLUICE_LOG(Warning) << "drain_timeout passed with requests running; they end now";
  }
}

absl::Status Serve(const RouterConfig& config) {
  const int max_http_connections = HttpShareOfFiles(RaiseFileLimit(), config.max_connections);
  MetricsRegistry registry;
  AddProcessMetrics(&registry, Version());
  SLUICE_ASSIGN_OR_RETURN(ApiOptions api_options, MakeApiOptions(config));
  SLUICE_ASSIGN_OR_RETURN(ServedModel model, LoadServedModel(config.model));

  RouterMetrics metrics(&registry, config.served_model_name);
  DispatcherThread dispatcher(MakeDispatcherOptions(config), &metrics);
  ExitGuard exit_guard({[&dispatcher] { return dispatcher.NotLiveReason(); }});
  FleetServerOptions fleet_options;
  fleet_options.host = config.fleet_host;
  fleet_options.port = config.fleet_port;
  fleet_options.router_id = RouterId();
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<FleetServer> fleet,
                          FleetServer::Start(fleet_options, &dispatcher));
  dispatcher.Start(fleet.get());
  // Whatever ends this function: the dispatcher stops before the port it talks to goes.
  struct StopDispatcher {
    DispatcherThread& dispatcher;
    ~StopDispatcher() { dispatcher.Stop(); }
  } stop_dispatcher{dispatcher};

  SLUICE_ASSIGN_OR_RETURN(
      std::unique_ptr<ApiContext> context,
      ApiContext::Create(std::move(api_options), std::move(model), &dispatcher, &registry));
  HttpOptions http_options;
  http_options.host = config.http_host;
  http_options.port = config.http_port;
  http_options.max_connections = max_http_connections;
  http_options.max_body_bytes = static_cast<int64_t>(config.max_body.bytes);
  http_options.cors_allow_origin = config.cors_allow_origin;
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<HttpServer> http,
                          StartHttpServer(http_options, context.get()));
  GrpcOptions grpc_options;
  grpc_options.host = config.grpc_host;
  grpc_options.port = config.grpc_port;
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<GrpcServer> grpc,
                          StartGrpcServer(grpc_options, context.get()));
  AdminProbes probes;
  probes.live = [&dispatcher] { return dispatcher.NotLiveReason(); };
  probes.started = [] { return std::string(); };
  probes.ready = [&dispatcher] { return dispatcher.NotReadyReason(); };
  SLUICE_ASSIGN_OR_RETURN(
      std::unique_ptr<AdminServer> admin,
      AdminServer::Start({config.admin_host, config.admin_port}, &registry, std::move(probes)));

  if (!config.port_file.empty()) {
    SLUICE_RETURN_IF_ERROR(WritePortFile(config.port_file, {{"http_port", http->port()},
                                                            {"grpc_port", grpc->port()},
                                                            {"fleet_port", fleet->port()},
                                                            {"admin_port", admin->port()}}));
  }
  SLUICE_LOG(Info) << "serving " << config.served_model_name << ": http "
                   << JoinHostPort(config.http_host, http->port()) << ", grpc "
                   << JoinHostPort(config.grpc_host, grpc->port()) << ", workers "
                   << JoinHostPort(config.fleet_host, fleet->port()) << ", admin "
                   << JoinHostPort(config.admin_host, admin->port());

  // Load balancers look elsewhere from now on, but not all of them at once.
  const int signal = AwaitStopSignal([&dispatcher] { dispatcher.AnnounceDrain(); });
  if (config.drain_delay > absl::ZeroDuration()) {
    SLUICE_LOG(Info) << "signal " << signal << ": not ready any more; serving for another "
                     << absl::FormatDuration(config.drain_delay);
    absl::SleepFor(config.drain_delay);
  }
  SLUICE_LOG(Info) << "signal " << signal << ": draining for up to "
                   << absl::FormatDuration(config.drain_timeout);
  exit_guard.LeaveWithin(config.drain_timeout + kStopGrace);
  Drain(&dispatcher, http.get(), grpc.get(), config.drain_timeout);
  SLUICE_LOG(Info) << "drained; exiting";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  RouterConfig config;
  ConfigSchema schema("sluice-router", "Public front of a Sluice cluster.",
                      "sluice-router --model models/deepseek-tiny --http-port 8000");
  AddRouterConfig(&schema, &config);
  const absl::StatusOr<ConfigAction> action = schema.Load(argc, argv);
  if (!action.ok()) {
    std::cerr << "sluice-router: " << action.status().message() << "\n";
    return 2;
  }
  if (action->exit) {
    std::cout << action->text;
    return 0;
  }
  if (const absl::Status status = FinishRouterConfig(&config); !status.ok()) {
    std::cerr << "sluice-router: " << status.message() << "\n";
    return 2;
  }
#ifdef NDEBUG
  // Distributions build Abseil with its deadlock detector on: every lock would go through a table
  // that all threads share.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
  InitLogging({"sluice-router", LevelByName(config.log_level), config.log_json});
  // Before any thread starts, so that all inherit it and sigwait gets the signals.
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  if (const absl::Status status = Serve(config); !status.ok()) {
    SLUICE_LOG(Error) << status.message();
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace sluice::router

int main(int argc, char** argv) { return sluice::router::Main(argc, argv); }
