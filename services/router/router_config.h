// The configuration of sluice-router. Filled by AddRouterConfig and ConfigSchema::Load; defaults
// suit a laptop.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/config.h"

namespace sluice::router {

struct RouterConfig {
  std::string model;              // folder with config.json and tokenizer.json
  std::string served_model_name;  // "": the folder's name

  std::string http_host = "127.0.0.1";
  int http_port = 8000;
  std::string grpc_host = "127.0.0.1";
  int grpc_port = 8001;
  std::string fleet_host = "127.0.0.1";
  int fleet_port = 8002;
  std::string admin_host = "127.0.0.1";
  int admin_port = 8003;
  std::string port_file;

  int max_connections = 4096;
  int max_queued_requests = 1024;
  int max_running_requests = 256;
  absl::Duration queue_timeout = absl::Seconds(30);
  absl::Duration request_timeout = absl::Minutes(30);
  ByteSize max_body{8 << 20};
  std::string cors_allow_origin;

  bool recovery = true;
  absl::Duration worker_timeout = absl::Milliseconds(1500);
  absl::Duration no_worker_timeout = absl::Seconds(3);
  int max_lost_workers = 2;

  absl::Duration drain_delay = absl::ZeroDuration();
  absl::Duration drain_timeout = absl::Seconds(25);
  std::string log_level = "info";
  bool log_json = false;
};

// Registers every key with its reason.
void AddRouterConfig(ConfigSchema* schema, RouterConfig* config);

// Fills what is derived (served_model_name) and refuses what cannot work.
absl::Status FinishRouterConfig(RouterConfig* config);

}  // namespace sluice::router
