#include "services/worker_runtime/worker_program.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/exit_guard.h"
#include "common/file_limit.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/port_file.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "kvtransfer/channel/ucx_channel.h"
#include "metrics/admin_server.h"
#include "modelspec/model_spec.h"
#include "services/worker_runtime/signals.h"
#include "services/worker_runtime/worker_config.h"
#include "tokenizer/tokenizer.h"

namespace sluice::worker {
namespace {

constexpr absl::Duration kLoadLogInterval = absl::Seconds(5);
// What a step under way and the threads' ends may take beyond drain_timeout.
constexpr absl::Duration kStopGrace = absl::Seconds(10);

LogLevel LevelByName(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

// What the admin server's and the signal watcher's threads may ask while main goes through its
// phases.
class Phase {
 public:
  void Loading(double progress) { percent_.store(static_cast<int>(progress * 100)); }
  void Serving(const Worker* worker) { worker_.store(worker); }

  bool loading() const { return worker_.load() == nullptr; }
  std::string NotStartedReason() const {
    return loading() ? absl::StrCat("loading the model, ", percent_.load(), "%") : "";
  }
  std::string NotReadyReason() const {
    const Worker* worker = worker_.load();
    return worker == nullptr ? NotStartedReason() : worker->NotReadyReason();
  }
  // Loading takes as long as it takes.
  std::string NotLiveReason() const {
    const Worker* worker = worker_.load();
    return worker == nullptr ? "" : worker->NotLiveReason();
  }
  absl::StatusOr<std::string> BlocksJson() const {
    const Worker* worker = worker_.load();
    if (worker == nullptr) return absl::UnavailableError(NotStartedReason());
    return worker->BlocksJson();
  }

 private:
  std::atomic<int> percent_{0};
  std::atomic<const Worker*> worker_{nullptr};
};

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
}

// How many ids the tokenizer defines: rows of the vocabulary beyond them exist in the weights
// (DeepSeek-V3 has 465 of them) but stand for no text, and are never sampled. 0, all, without a
// tokenizer.
absl::StatusOr<int64_t> SampleableVocabSize(const std::string& model_dir) {
  const auto tokenizer = Tokenizer::Load(model_dir);
  if (absl::IsNotFound(tokenizer.status())) {
    SLUICE_LOG(Warning) << "no tokenizer in " << model_dir << ": every id may be sampled";
    return 0;
  }
  if (!tokenizer.ok()) return tokenizer.status();
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(model_dir));
  return std::min<int64_t>((*tokenizer)->vocab_size(), spec.vocab_size);
}

absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const WorkerConfig& config, Phase* phase) {
  SLUICE_LOG(Info) << "loading " << config.model;
  EngineOptions options = config.MakeEngineOptions();
  SLUICE_ASSIGN_OR_RETURN(options.sampleable_vocab_size, SampleableVocabSize(config.model));
  // A line now and then: a small model loads without any, a large one shows that it moves.
  options.on_load_progress = [phase, next_line = MonotonicNow() +
                                                 kLoadLogInterval](double progress) mutable {
    phase->Loading(progress);
    if (MonotonicNow() < next_line) return;
    next_line = MonotonicNow() + kLoadLogInterval;
    SLUICE_LOG(Info) << "loading: " << static_cast<int>(progress * 100) << "%";
  };
  return Engine::Create(options);
}

absl::StatusOr<TransferParts> OpenTransfer(const WorkerConfig& config,
                                           const WorkerOptions& worker) {
  UcxOptions options;
  options.name = worker.worker_id;
  options.tls = config.transfer_tls;
  options.net_devices = config.transfer_net_devices;
  if (config.transfer_expect != "any") options.expect_transport = config.transfer_expect;
  TransferParts parts;
  SLUICE_ASSIGN_OR_RETURN(parts.channel, CreateUcxChannel(options));
  parts.agent =
      TransferAgent::Create(config.transfer, worker.incarnation, parts.channel.get(), &RealClock());
  return parts;
}

[[noreturn]] void Die(const std::string& why) {
  SLUICE_LOG(Error) << why << "; leaving";
  _exit(1);
}

absl::Status Serve(const WorkerConfig& config, const WorkerProgram& program) {
  Phase phase;
  absl::Notification stop;
  const std::unique_ptr<SignalWatcher> signals = SignalWatcher::Start([&](int signal) {
    if (phase.loading()) _exit(128 + signal);  // nothing has been promised to anybody yet
    stop.Notify();
  });
  ExitGuard exit_guard({[&phase] { return phase.NotLiveReason(); }});

  MetricsRegistry registry({{"role", config.role}});
  AddProcessMetrics(&registry, Version());
  std::unique_ptr<Worker> worker;  // outlives the admin server, whose probes ask it
  AdminProbes probes;
  probes.live = [&phase] { return phase.NotLiveReason(); };
  probes.started = [&phase] { return phase.NotStartedReason(); };
  probes.ready = [&phase] { return phase.NotReadyReason(); };
  AdminPages pages;
  pages["/blocks"] = [&phase] { return phase.BlocksJson(); };
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<AdminServer> admin,
                          AdminServer::Start({config.admin_host, config.admin_port}, &registry,
                                             std::move(probes), std::move(pages)));
  if (!config.port_file.empty()) {  // now: who waits for us may ask how far the loading is
    SLUICE_RETURN_IF_ERROR(WritePortFile(config.port_file, {{"admin_port", admin->port()}}));
  }

  RaiseFileLimit();
  const absl::Time load_began = MonotonicNow();
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, LoadEngine(config, &phase));
  const absl::Duration load_time = MonotonicNow() - load_began;

  WorkerOptions options;
  options.worker_id =
      config.worker_id.empty() ? absl::StrCat(HostName(), ":", admin->port()) : config.worker_id;
  options.role = config.role;
  options.served_model_name = config.served_model_name;
  options.dtype = config.dtype;
  options.compute_niceness = config.compute_niceness;
  options.admin_address = JoinHostPort(config.admin_host, admin->port());
  options.max_num_seqs = config.scheduler.max_num_seqs;
  options.routers.routers = config.routers;
  options.transfer = config.transfer;
  options.incarnation = Incarnation(RandomUint64());
  options.on_fatal = Die;
  options.load_duration = load_time;
  TransferParts transfer;
  if (config.role != "both") {
    SLUICE_ASSIGN_OR_RETURN(transfer, OpenTransfer(config, options));
  }
  SLUICE_LOG(Info) << "worker " << options.worker_id << ", role " << config.role << ": "
                   << config.served_model_name << " ready in "
                   << absl::FormatDuration(absl::Trunc(load_time, absl::Milliseconds(1))) << ", "
                   << engine->Load().blocks.total << " KV blocks, " << engine->isa()
                   << ", admin port " << admin->port();

  HandlerFactory make_handler;
  for (const auto& [role, factory] : program.roles) {
    if (role == config.role) make_handler = factory;
  }
  worker = Worker::Start(std::move(options), std::move(engine), std::move(transfer), make_handler,
                         &registry);
  phase.Serving(worker.get());

  stop.WaitForNotification();
  SLUICE_LOG(Info) << "draining " << worker->num_requests() << " requests, at most "
                   << absl::FormatDuration(config.drain_timeout) << " (signal again to leave now)";
  exit_guard.LeaveWithin(config.drain_timeout + kStopGrace);
  worker->BeginDrain();
  if (!worker->WaitDrained(config.drain_timeout)) {
    SLUICE_LOG(Warning) << worker->num_requests() << " requests did not end in time";
  }
  worker->Stop();
  SLUICE_LOG(Info) << "stopped";
  return absl::OkStatus();
}

}  // namespace

int RunWorkerProgram(const WorkerProgram& program, int argc, const char* const* argv) {
  WorkerConfig config;
  ConfigSchema schema(program.name, program.description, program.examples);
  std::vector<std::string> roles;
  for (const auto& [role, factory] : program.roles) roles.push_back(role);
  config.Register(&schema, roles);
  const absl::StatusOr<ConfigAction> action = schema.Load(argc, argv);
  if (!action.ok()) {
    std::cerr << program.name << ": " << action.status().message() << "\n";
    return 2;
  }
  if (action->exit) {
    std::cout << action->text;
    return 0;
  }
  if (const absl::Status finished = config.Finish(); !finished.ok()) {
    std::cerr << program.name << ": " << finished.message() << "\n";
    return 2;
  }
  InitLogging({program.name, LevelByName(config.log_level), config.log_json});
  if (const absl::Status served = Serve(config, program); !served.ok()) {
    SLUICE_LOG(Error) << served.message();
    return 1;
  }
  return 0;
}

}  // namespace sluice::worker
