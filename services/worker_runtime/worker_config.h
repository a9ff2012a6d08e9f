// The configuration of both worker programs: a struct with defaults and its schema. Main thread, at
// start.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/config.h"
#include "engine/runtime/engine.h"
#include "kvtransfer/agent/transfer_agent.h"

namespace sluice::worker {

struct WorkerConfig {
  std::string model;              // folder with config.json and *.safetensors
  std::string served_model_name;  // "": the folder's name
  std::string role;               // set by the program to its default
  std::vector<std::string> routers = {"127.0.0.1:8002"};
  std::string worker_id;  // "": host name and admin port
  std::string admin_host = "127.0.0.1";
  int admin_port = 0;
  std::string port_file;

  std::string dtype = "bf16";
  std::string isa = "auto";
  int threads = 0;
  int compute_niceness = 0;
  bool verify_weights = true;
  ByteSize kv_cache;
  int64_t num_kv_blocks = 0;
  SchedulerOptions scheduler;

  std::string transfer_tls;
  std::string transfer_net_devices;
  std::string transfer_expect = "any";
  TransferOptions transfer;
  ByteSize transfer_window{TransferOptions().window_bytes};

  absl::Duration drain_timeout = absl::Seconds(25);
  std::string log_level = "info";
  bool log_json = false;

  // Registers every key. `roles` are the ones this program can play; the first is the default.
  void Register(ConfigSchema* schema, const std::vector<std::string>& roles);
  // What the schema cannot see; also fills in derived defaults. INVALID_ARGUMENT names the key.
  absl::Status Finish();

  EngineOptions MakeEngineOptions() const;
};

}  // namespace sluice::worker
