#include "services/worker_runtime/worker_config.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/utf8.h"

namespace sluice::worker {
namespace {

constexpr int kMaxTokens = 1 << 22;

absl::Status CheckRouter(const std::string& router) {
  const size_t colon = router.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(router.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("routers: '", router, "' is not host:port or dns:host:port"));
  }
  return absl::OkStatus();
}

}  // namespace

void WorkerConfig::Register(ConfigSchema* schema, const std::vector<std::string>& roles) {
  role = roles.front();
  schema->AddPositional("model", &model, "The model's folder.");
  schema->Add("model", &model, "Folder of the model: config.json and *.safetensors.");
  schema->Add("served_model_name", &served_model_name,
              "Name under which clients ask for the model. Empty: the folder's name.");
  schema->AddChoice("role", &role, roles,
                    "What this worker does for a request. The router hands prompts from prefill to "
                    "decode workers; a worker of role both does everything itself.");
  schema->Add("routers", &routers,
              "Routers to attach to: host:port, or dns:host:port for every address of a name (a "
              "headless service), looked up again every few seconds.");
  schema->Add("worker_id", &worker_id,
              "Unique name of this worker, for people and metrics. Empty: host name and admin "
              "port. In Kubernetes: the pod's name.");
  schema->Add("admin_host", &admin_host,
              "Address of /livez /readyz /startupz /metrics. 0.0.0.0 to let Prometheus in.");
  schema->Add("admin_port", &admin_port, "Port of the admin server. 0: any free one.", 0, 65535);
  schema->Add(
      "port_file", &port_file,
      "Where to write the process id and the admin port, as JSON, once that listens: before "
      "the model is loaded, so that /readyz can tell how far it is. Empty: nowhere.");

  schema->AddChoice("dtype", &dtype, {"bf16", "f32"},
                    "Precision of weights, activations and KV. Workers of one cluster must agree.");
  schema->AddChoice("isa", &isa, {"auto", "portable", "avx2", "avx512", "amx"},
                    "Processor instructions to use. auto: the best there is. Set it when workers "
                    "on different processors must give the same bits.");
  schema->Add(
      "threads", &threads,
      "Compute threads. 0: as many as this process may use processors, by its CPU affinity and "
      "its container's CPU limit.",
      0, 4096);
  schema->Add("compute_niceness", &compute_niceness,
              "What the compute threads yield to others of the processor, as nice(1). For prefill "
              "workers that share cores with decode workers; heartbeats and transfers yield "
              "nothing.",
              0, 19);
  schema->Add(
      "verify_weights", &verify_weights,
      "Check the folder against its sluice-manifest.json, if it has one, while loading: a damaged "
      "or exchanged file is refused. Off avoids reading tensors that loading would skip.");
  schema->Add(
      "kv_cache", &kv_cache,
      "Memory for KV blocks, for example 4GiB. 0: a quarter of what is free at start, at most "
      "2GiB; if that is little, scheduler.max_model_len becomes what fits.");
  schema->Add("num_kv_blocks", &num_kv_blocks,
              "KV blocks of 64 tokens; overrides kv_cache. 0: by kv_cache.", 0,
              std::numeric_limits<int32_t>::max());
  schema->Add("scheduler.max_num_batched_tokens", &scheduler.max_num_batched_tokens,
              "Tokens in one engine step. Larger: faster prompts; smaller: steadier answers.", 1,
              kMaxTokens);
  schema->Add("scheduler.max_num_seqs", &scheduler.max_num_seqs, "Sequences in one engine step.", 1,
              1 << 16);
  schema->Add("scheduler.max_model_len", &scheduler.max_model_len,
              "Longest prompt plus answer, in tokens. 0: what the model allows.", 0, kMaxTokens);
  schema->Add("scheduler.max_num_waiting", &scheduler.max_num_waiting,
              "Sequences that may wait; more are refused and the router looks elsewhere.", 1,
              1 << 20);
  schema->Add("scheduler.enable_prefix_cache", &scheduler.enable_prefix_cache,
              "Reuse the KV of prompts that begin alike.");

  schema->Add("transfer.tls", &transfer_tls,
              "UCX transports to allow (UCX_TLS), for example rc,sm or tcp. Empty: UCX chooses.");
  schema->Add(
      "transfer.net_devices", &transfer_net_devices,
      "Network devices for UCX (UCX_NET_DEVICES), for example mlx5_0:1 or eth0. Empty: all. "
      "KV is not encrypted and UCX over TCP trusts whoever connects: name an isolated "
      "network's device.");
  schema->AddChoice("transfer.expect", &transfer_expect, {"any", "rdma", "shm", "tcp"},
                    "Transport that must be chosen between hosts; another one fails transfers "
                    "instead of being slow in silence.");
  schema->Add("transfer.lease", &transfer.lease,
              "A transfer without any progress ends after this, and its blocks are freed.");
  schema->Add("transfer.peer_timeout", &transfer.peer_timeout,
              "A peer that shows no sign of life for this long is dead.");
  schema->Add(
      "transfer.fetch_patience", &transfer.fetch_patience,
      "A prefill worker that asks a decode worker for the beginning of a prompt computes it "
      "itself when nothing comes for this long. 0: it never asks.");
  schema->Add("transfer.window", &transfer_window,
              "Bytes of one transfer that may be under way unacknowledged.");

  schema->Add("drain_timeout", &drain_timeout,
              "How long running requests may go on after SIGTERM. Keep it below the orchestrator's "
              "grace period (Kubernetes: 30s).");
  schema->AddChoice("log_level", &log_level, {"debug", "info", "warning", "error"},
                    "Least important messages that are logged.");
  schema->Add("log_json", &log_json, "Log one JSON object a line.");
}

absl::Status WorkerConfig::Finish() {
  if (model.empty()) {
    return absl::InvalidArgumentError("model: name the model's folder (--model DIR)");
  }
  if (routers.empty()) return absl::InvalidArgumentError("routers: at least one is needed");
  for (const std::string& router : routers) {
    if (absl::Status checked = CheckRouter(router); !checked.ok()) return checked;
  }
  if (scheduler.max_num_batched_tokens < scheduler.max_num_seqs) {
    return absl::InvalidArgumentError(
        absl::StrCat("scheduler.max_num_batched_tokens (", scheduler.max_num_batched_tokens,
                     ") must be at least scheduler.max_num_seqs (", scheduler.max_num_seqs, ")"));
  }
  const struct {
    const char* key;
    absl::Duration value;
    absl::Duration low;
  } durations[] = {
      {"transfer.lease", transfer.lease, absl::Milliseconds(500)},
      {"transfer.peer_timeout", transfer.peer_timeout, 2 * transfer.heartbeat_interval},
      {"transfer.fetch_patience", transfer.fetch_patience, absl::ZeroDuration()},
      {"drain_timeout", drain_timeout, absl::ZeroDuration()},
  };
  for (const auto& duration : durations) {
    if (duration.value < duration.low || duration.value > absl::Hours(24)) {
      return absl::InvalidArgumentError(
          absl::StrCat(duration.key, ": ", absl::FormatDuration(duration.value), " is not within ",
                       absl::FormatDuration(duration.low), " and 24h"));
    }
  }
  if (transfer_window.bytes < (1 << 20)) {
    return absl::InvalidArgumentError("transfer.window: less than 1MiB");
  }
  transfer.window_bytes = transfer_window.bytes;
  // What is fetched becomes cached prefix, or nothing.
  if (!scheduler.enable_prefix_cache) transfer.fetch_patience = absl::ZeroDuration();
  if (served_model_name.empty()) {
    std::filesystem::path path = std::filesystem::path(model).lexically_normal();
    if (path.filename().empty()) path = path.parent_path();
    served_model_name = path.filename().string();
  }
  // They go to routers as protobuf strings.
  if (!IsValidUtf8(served_model_name)) {
    return absl::InvalidArgumentError("served_model_name: not UTF-8");
  }
  if (!IsValidUtf8(worker_id)) return absl::InvalidArgumentError("worker_id: not UTF-8");
  return absl::OkStatus();
}

EngineOptions WorkerConfig::MakeEngineOptions() const {
  EngineOptions options;
  options.model_dir = model;
  options.dtype = dtype == "f32" ? DType::kF32 : DType::kBF16;
  options.isa = isa;
  options.num_threads = threads;
  options.compute_niceness = compute_niceness;
  options.verify_weights = verify_weights;
  options.kv_cache_bytes = kv_cache.bytes;
  options.num_kv_blocks = num_kv_blocks;
  options.scheduler = scheduler;
  return options;
}

}  // namespace sluice::worker
