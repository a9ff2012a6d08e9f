// sluice up: a whole cluster on this machine.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/cluster_launcher.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/installation.h"
#include "cli/log_printer.h"
#include "cli/machine_share.h"
#include "cli/run_dir.h"
#include "common/status_macros.h"
#include "engine/runtime/memory_fit.h"
#include "modelspec/model_spec.h"

namespace sluice::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kExamples[] = R"(Examples:
  sluice up                              one prefill and one decode worker, the tiny model
  sluice up --prefill 2 --decode 1
  sluice up --both 1                     one worker that does both, no handoff
  sluice up --model /models/DeepSeek-V2-Lite --kv-cache 4GiB --detach
  sluice up --worker-arg=--scheduler.max-num-seqs=16
Then:
  sluice chat
  sluice status
  curl http://127.0.0.1:8000/v1/models
  sluice down                            (or Ctrl-C where it runs))";

struct UpFlags {
  std::string model;
  std::string served_model_name;
  int num_prefill = -1;
  int num_decode = -1;
  int num_both = 0;
  std::string host = "127.0.0.1";
  int http_port = 8000;
  int grpc_port = 8001;
  int threads = 0;
  std::string kv_cache;
  std::string dtype;
  std::string isa;
  std::string log_level;
  double ready_timeout_seconds = 120;
  double drain_timeout_seconds = 25;
  std::vector<std::string> router_args;
  std::vector<std::string> worker_args;
  std::string bin_dir;
  std::string run_dir = DefaultRunDir();
  bool detach = false;
};

absl::StatusOr<ClusterOptions> MakeOptions(const UpFlags& flags) {
  ClusterOptions options;
  options.model_dir = flags.model.empty() ? FindTinyModel() : flags.model;
  if (options.model_dir.empty()) {
    return absl::NotFoundError(
        "the model that comes with Sluice is not beside this program; name a "
        "model folder with --model");
  }
  std::error_code error;
  if (!fs::exists(fs::path(options.model_dir) / "config.json", error)) {
    return absl::NotFoundError(
        absl::StrCat("--model ", options.model_dir,
                     ": no config.json there; it must be a folder with a Hugging Face checkpoint"));
  }
  // One of each that is not given, unless there are workers for both.
  const int unless_given = flags.num_both == 0 ? 1 : 0;
  options.num_prefill = flags.num_prefill < 0 ? unless_given : flags.num_prefill;
  options.num_decode = flags.num_decode < 0 ? unless_given : flags.num_decode;
  options.num_both = flags.num_both;
  if (options.num_both == 0 && (options.num_prefill == 0 || options.num_decode == 0)) {
    return absl::InvalidArgumentError(
        "a cluster needs a prefill worker and a decode worker (--prefill 1 --decode 1), or one "
        "that does both (--both 1)");
  }
  const int num_workers = options.num_prefill + options.num_decode + options.num_both;
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(options.model_dir));
  const auto weight_bytes =
      static_cast<uint64_t>(WeightBytes(spec, DTypeOf(EngineFlags{.dtype = flags.dtype})));
  const Machine machine = ThisMachine();
  const WorkerShare share = ShareMachine(machine, num_workers, weight_bytes);
  ByteSize kv_cache = share.kv_cache;
  if (!flags.kv_cache.empty()) {
    absl::StatusOr<ByteSize> given = ParseByteSize(flags.kv_cache);
    if (!given.ok()) return Annotate(given.status(), "--kv-cache");
    kv_cache = *given;
  }
  SLUICE_RETURN_IF_ERROR(CheckMemory(machine, num_workers, weight_bytes, kv_cache));
  options.bin_dir = flags.bin_dir.empty() ? OwnFolder().string() : flags.bin_dir;
  options.run_dir = flags.run_dir;
  options.served_model_name = flags.served_model_name;
  options.host = flags.host;
  options.http_port = flags.http_port;
  options.grpc_port = flags.grpc_port;
  options.threads_per_worker = flags.threads > 0 ? flags.threads : share.threads;
  options.kv_cache_per_worker = FormatByteSize(kv_cache);
  options.ready_timeout = absl::Seconds(flags.ready_timeout_seconds);
  options.drain_timeout = absl::Seconds(flags.drain_timeout_seconds);
  if (!flags.log_level.empty()) {
    options.router_args = {"--log-level", flags.log_level};
    options.worker_args = {"--log-level", flags.log_level};
  }
  if (!flags.dtype.empty())
    options.worker_args.insert(options.worker_args.end(), {"--dtype", flags.dtype});
  if (!flags.isa.empty())
    options.worker_args.insert(options.worker_args.end(), {"--isa", flags.isa});
  options.router_args.insert(options.router_args.end(), flags.router_args.begin(),
                             flags.router_args.end());
  options.worker_args.insert(options.worker_args.end(), flags.worker_args.begin(),
                             flags.worker_args.end());
  return options;
}

std::string HowToTalk(const ClusterInfo& info, const std::string& run_dir) {
  const std::string where = RunDirFlag(run_dir);
  return absl::StrCat("\n  sluice chat", where, "\n  sluice status", where, "\n  curl http://",
                      info.http_address,
                      "/v1/chat/completions -H 'Content-Type: application/json' \\\n",
                      "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'\n",
                      "  gRPC sluice.v1.Generation on ", info.grpc_address, "\n");
}

// Starts, calls `on_ready` once, serves, stops.
absl::Status RunCluster(const ClusterOptions& options, int output_fd,
                        const std::function<void(const std::string&)>& on_ready) {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<RunDirLock> lock,
                          RunDirLock::Take(options.run_dir));
  LogPrinter printer(output_fd, WantsColours(output_fd), std::string("prefill-0").size());
  ClusterLauncher launcher(options, &printer);
  // At once, so that `sluice down` can stop what is still loading; the addresses follow.
  ClusterInfo starting;
  starting.pid = getpid();
  starting.stop_timeout = launcher.StopTimeout();
  SLUICE_RETURN_IF_ERROR(WriteClusterInfo(options.run_dir, starting));
  absl::Status status = launcher.Start();
  if (status.ok()) status = WriteClusterInfo(options.run_dir, launcher.info());
  if (status.ok()) {
    on_ready(HowToTalk(launcher.info(), options.run_dir));
    status = launcher.Serve();
  }
  launcher.Stop();
  return status;
}

// Runs the cluster in a process of its own session, whose output goes to run_dir/sluice.log, and
// waits until it is ready or has failed.
absl::Status RunDetached(const ClusterOptions& options) {
  std::error_code error;
  fs::create_directories(options.run_dir, error);
  const std::string log_path = options.run_dir + "/sluice.log";
  int ready_pipe[2];
  if (pipe2(ready_pipe, O_CLOEXEC) != 0) return absl::InternalError("cannot make a pipe");
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError("cannot fork");
  if (pid == 0) {
    setsid();
    close(ready_pipe[0]);
    const int log_fd = open(log_path.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    const int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null_fd, STDIN_FILENO);
    dup2(log_fd >= 0 ? log_fd : null_fd, STDOUT_FILENO);
    dup2(log_fd >= 0 ? log_fd : null_fd, STDERR_FILENO);
    // 'R' and the hints when ready; or 'F' and what failed.
    const auto tell = [&](const std::string& message) {
      (void)!write(ready_pipe[1], message.data(), message.size());
      close(ready_pipe[1]);
    };
    bool told = false;
    const absl::Status status = RunCluster(options, STDOUT_FILENO, [&](const std::string& hints) {
      tell("R" + hints);
      told = true;
    });
    if (!told) tell(absl::StrCat("F", status.message()));
    _exit(status.ok() || absl::IsCancelled(status) ? 0 : Fail(status));  // into the log
  }
  close(ready_pipe[1]);
  std::string answer;
  char buffer[1024];
  ssize_t got;
  while ((got = read(ready_pipe[0], buffer, sizeof(buffer))) != 0) {
    if (got < 0 && errno != EINTR) break;
    if (got > 0) answer.append(buffer, static_cast<size_t>(got));
  }
  close(ready_pipe[0]);
  if (answer.empty() || answer[0] != 'R') {
    return absl::AbortedError(absl::StrCat(answer.empty() ? "it ended early" : answer.substr(1),
                                           "\n(the whole log is ", log_path, ")"));
  }
  std::cout << "The cluster runs in the background (process " << pid << ", log " << log_path
            << "); `sluice down" << RunDirFlag(options.run_dir) << "` stops it.\n"
            << answer.substr(1) << std::flush;
  return absl::OkStatus();
}

int Up(const UpFlags& flags) {
  const absl::StatusOr<ClusterOptions> options = MakeOptions(flags);
  if (!options.ok()) return Fail(options.status());
  if (flags.detach) {
    const absl::Status status = RunDetached(*options);
    return status.ok() ? 0 : Fail(status);
  }
  const absl::Status status = RunCluster(*options, STDOUT_FILENO, [](const std::string& hints) {
    std::cout << hints << "  Ctrl-C stops it\n" << std::endl;
  });
  // Interrupted while starting is what the user asked for.
  return status.ok() || absl::IsCancelled(status) ? 0 : Fail(status);
}

}  // namespace

void AddUp(CLI::App* app, int* exit_code) {
  CLI::App* const up = app->add_subcommand("up", "Run a whole cluster on this machine");
  auto flags = std::make_shared<UpFlags>();
  up->add_option("-m,--model", flags->model, "Model folder; the tiny model that comes with Sluice");
  up->add_option("--served-model-name", flags->served_model_name, "Name of the model in the APIs");
  up->add_option("--prefill", flags->num_prefill, "Prefill workers; 1 without --both")
      ->check(CLI::Range(0, 64));
  up->add_option("--decode", flags->num_decode, "Decode workers; 1 without --both")
      ->check(CLI::Range(0, 64));
  up->add_option("--both", flags->num_both, "Workers that do both")->check(CLI::Range(0, 64));
  up->add_option("--host", flags->host, "Address of the public ports")->capture_default_str();
  up->add_option("--http-port", flags->http_port, "OpenAI-compatible HTTP; 0: any free")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  up->add_option("--grpc-port", flags->grpc_port, "gRPC; 0: any free")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  up->add_option("--threads", flags->threads, "Threads of each worker; 0: the cores, shared out")
      ->check(CLI::Range(0, 1024));
  up->add_option(
      "--kv-cache", flags->kv_cache,
      "KV memory of each worker, as 512MiB; unset: a quarter of what the weights leave, shared "
      "out, at most 1GiB");
  up->add_option("--dtype", flags->dtype, "bf16 or f32")->check(CLI::IsMember({"bf16", "f32"}));
  up->add_option("--isa", flags->isa, "Instruction family: auto, portable, avx2, avx512, amx");
  up->add_option("--log-level", flags->log_level, "debug, info, warning or error");
  up->add_option("--ready-timeout", flags->ready_timeout_seconds,
                 "Give up after this many seconds without loading progress")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  up->add_option("--drain-timeout", flags->drain_timeout_seconds,
                 "Seconds that running answers get when it is stopped; killed 10 s after that")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  up->add_option("--router-arg", flags->router_args, "A further flag of sluice-router; repeatable")
      ->allow_extra_args(false);
  up->add_option("--worker-arg", flags->worker_args, "A further flag of every worker; repeatable")
      ->allow_extra_args(false);
  up->add_option("--bin-dir", flags->bin_dir, "Folder of the programs; the one this is in");
  up->add_option("--run-dir", flags->run_dir, "Folder for the lock and the port files")
      ->capture_default_str();
  up->add_flag("-d,--detach", flags->detach, "Leave it running in the background once it is ready");
  up->footer(kExamples);
  up->callback([flags, exit_code] { *exit_code = Up(*flags); });
}

}  // namespace sluice::cli
