#include "services/router/router_config.h"

#include <filesystem>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace sluice::router {

void AddRouterConfig(ConfigSchema* schema, RouterConfig* config) {
  schema->Add(
      "model", &config->model,
      "Folder of the model: config.json, tokenizer.json, generation_config.json. The router "
      "reads no weights.");
  schema->Add("served_model_name", &config->served_model_name,
              "Name clients use and workers must serve. Empty: the model folder's name.");

  schema->Add("http_host", &config->http_host,
              "IP address of the OpenAI-compatible HTTP server. 0.0.0.0 (or ::) opens it to the "
              "network: without encryption and without API keys, so put a proxy with both in "
              "front.");
  schema->Add("http_port", &config->http_port, "Port of the HTTP server; 0 takes a free one.", 0,
              65535);
  schema->Add("grpc_host", &config->grpc_host,
              "IP address of the public gRPC server; unencrypted and open, like that of HTTP.");
  schema->Add("grpc_port", &config->grpc_port,
              "Port of the public gRPC server; 0 takes a free one.", 0, 65535);
  schema->Add("fleet_host", &config->fleet_host,
              "Address that workers dial. Unencrypted: only on an isolated network.");
  schema->Add("fleet_port", &config->fleet_port, "Port that workers dial; 0 takes a free one.", 0,
              65535);
  schema->Add("admin_host", &config->admin_host, "Address of the metrics and probes.");
  schema->Add("admin_port", &config->admin_port,
              "Port of /metrics, /livez, /readyz and /startupz; 0 takes a free one.", 0, 65535);
  schema->Add("port_file", &config->port_file,
              "Where to write the process id and the ports in use, as JSON, once all of them "
              "listen. Empty: nowhere.");

  schema->Add(
      "max_connections", &config->max_connections,
      "Open HTTP connections; more are answered 503. Each needs a file descriptor; fewer are "
      "served where the hard limit of those is too low.",
      1, 1'000'000);
  schema->Add("max_queued_requests", &config->max_queued_requests,
              "Requests that may wait for a place; more are answered 429.", 0, 1'000'000);
  schema->Add("max_running_requests", &config->max_running_requests,
              "Requests on workers at once. Raise it with the decode workers' capacity.", 1,
              1'000'000);
  schema->Add("queue_timeout", &config->queue_timeout,
              "A request that still waits after this long is answered 429.");
  schema->Add("request_timeout", &config->request_timeout,
              "A request without an earlier deadline of its own ends after this long.");
  schema->Add("max_body", &config->max_body, "Largest HTTP request body; larger ones get 413.");
  schema->Add("cors_allow_origin", &config->cors_allow_origin,
              "Origin of the web pages that may call the HTTP API from a browser, such as "
              "https://chat.example, or *. Empty: none.");

  schema->Add(
      "recovery", &config->recovery,
      "Continue answers on other workers when a worker is lost. Without it they end with an "
      "error.");
  schema->Add(
      "worker_timeout", &config->worker_timeout,
      "A worker that is silent for this long is lost. Workers report every 200 ms; raise it "
      "on starved machines.");
  schema->Add("no_worker_timeout", &config->no_worker_timeout,
              "How long an accepted request waits for a ready worker when there is none.");

  schema->Add(
      "max_lost_workers", &config->max_lost_workers,
      "A request that was on this many workers when they died ends with an error: it may be "
      "what kills them. Raise it where workers come and go by themselves.",
      1, 1000);

  schema->Add("drain_delay", &config->drain_delay,
              "How long new requests are still served after SIGTERM, while /readyz says that they "
              "should go elsewhere already. 0 where nothing balances load by that; in Kubernetes "
              "5s, until every node knows.");
  schema->Add("drain_timeout", &config->drain_timeout,
              "What running answers are given to finish after SIGTERM and drain_delay. Keep the "
              "sum of both below the orchestrator's grace period (Kubernetes: 30s).");
  schema->AddChoice("log_level", &config->log_level, {"debug", "info", "warning", "error"},
                    "Least important messages to log.");
  schema->Add("log_json", &config->log_json, "One JSON object a line, for log collectors.");
}

absl::Status FinishRouterConfig(RouterConfig* config) {
  if (config->model.empty()) {
    return absl::InvalidArgumentError("model is required: the folder of the model to serve");
  }
  if (config->served_model_name.empty()) {
    const std::filesystem::path path = std::filesystem::path(config->model).lexically_normal();
    config->served_model_name =
        (path.has_filename() ? path : path.parent_path()).filename().string();
  }
  struct Limit {
    const char* key;
    absl::Duration value;
  };
  for (const Limit& limit : {Limit{"queue_timeout", config->queue_timeout},
                             Limit{"request_timeout", config->request_timeout},
                             Limit{"worker_timeout", config->worker_timeout}}) {
    if (limit.value <= absl::ZeroDuration()) {
      return absl::InvalidArgumentError(
          absl::StrCat(limit.key, " must be positive, not ", absl::FormatDuration(limit.value)));
    }
  }
  if (config->worker_timeout < absl::Milliseconds(400)) {
    return absl::InvalidArgumentError(absl::StrCat("worker_timeout is ",
                                                   absl::FormatDuration(config->worker_timeout),
                                                   ", less than two reports of a worker (400ms)"));
  }
  if (absl::c_any_of(config->cors_allow_origin, absl::ascii_iscntrl)) {
    return absl::InvalidArgumentError("cors_allow_origin holds characters that no header may hold");
  }
  return absl::OkStatus();
}

}  // namespace sluice::router
