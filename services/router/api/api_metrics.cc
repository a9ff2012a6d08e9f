#include "services/router/api/api_metrics.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/core/time_stages.h"

namespace sluice::router {
namespace {

// Codes that are counted for every route; others appear when they first happen.
constexpr int kCommonHttpCodes[] = {200, 400, 404, 429, 499, 500, 503};
constexpr const char* kHttpRoutes[] = {"/v1/chat/completions",
                                       "/v1/completions",
                                       "/v1/models",
                                       "/tokenize",
                                       "/detokenize",
                                       "/health",
                                       "/livez",
                                       "/readyz",
                                       "/version",
                                       "other"};
constexpr const char* kGrpcMethods[] = {"Generate",   "Chat",       "Tokenize",
                                        "Detokenize", "ListModels", "GetStatus"};
// OK, CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE.
constexpr int kCommonGrpcCodes[] = {0, 1, 3, 4, 8, 13, 14};

constexpr char kHttpHelp[] = "HTTP requests answered; 499: the client had gone.";
constexpr char kGrpcHelp[] = "gRPC calls ended, by status code number.";

Histogram* Stage(MetricsRegistry* registry, const char* stage) {
  return registry->AddHistogram("sluice_request_stage_duration_seconds",
                                "Stages of the time to the first and second token.", StageBuckets(),
                                {{"stage", stage}});
}

}  // namespace

ApiMetrics::ApiMetrics(MetricsRegistry* registry) : registry_(registry) {
  for (const char* route : kHttpRoutes) {
    for (int code : kCommonHttpCodes) {
      http_requests_[{route, code}] =
          registry_->AddCounter("sluice_http_requests_total", kHttpHelp,
                                {{"route", route}, {"code", absl::StrCat(code)}});
    }
  }
  for (const char* method : kGrpcMethods) {
    for (int code : kCommonGrpcCodes) {
      registry_->AddCounter("sluice_grpc_requests_total", kGrpcHelp,
                            {{"method", method}, {"code", absl::StrCat(code)}});
    }
  }
  for (Front front : {Front::kHttp, Front::kGrpc}) {
    const MetricLabels labels = {{"api", front == Front::kHttp ? "http" : "grpc"}};
    PerFront& entry = fronts_[static_cast<int>(front)];
    entry.streams =
        registry_->AddGauge("sluice_streams", "Answers being streamed to clients.", labels);
    entry.buffered_bytes = registry_->AddGauge(
        "sluice_stream_buffered_bytes", "Bytes of streams that clients have not yet read.", labels);
    entry.slow_client_evictions =
        registry_->AddCounter("sluice_slow_client_evictions_total",
                              "Streams ended because their client did not read.", labels);
  }
  http_connections_ = registry_->AddGauge("sluice_http_connections", "Open HTTP connections.");
  disconnects_[0] =
      registry_->AddCounter("sluice_client_disconnects_total", "Requests whose client went away.",
                            {{"phase", "before_first_token"}});
  disconnects_[1] =
      registry_->AddCounter("sluice_client_disconnects_total", "Requests whose client went away.",
                            {{"phase", "streaming"}});
  parse_ = Stage(registry_, time_stage::kParse);
  tokenize_ = Stage(registry_, time_stage::kTokenize);
  detokenize_ = Stage(registry_, time_stage::kDetokenize);
}

void ApiMetrics::ObserveFrontStages(absl::Duration parse, absl::Duration tokenize,
                                    absl::Duration detokenize) {
  parse_->Observe(absl::ToDoubleSeconds(parse));
  tokenize_->Observe(absl::ToDoubleSeconds(tokenize));
  detokenize_->Observe(absl::ToDoubleSeconds(detokenize));
}

void ApiMetrics::CountHttpRequest(absl::string_view route, int http_status) {
  if (const auto it = http_requests_.find(std::make_pair(route, http_status));
      it != http_requests_.end()) {
    return it->second->Increment();
  }
  registry_
      ->AddCounter("sluice_http_requests_total", kHttpHelp,
                   {{"route", std::string(route)}, {"code", absl::StrCat(http_status)}})
      ->Increment();
}

void ApiMetrics::CountGrpcRequest(absl::string_view method, int code) {
  registry_
      ->AddCounter("sluice_grpc_requests_total", kGrpcHelp,
                   {{"method", std::string(method)}, {"code", absl::StrCat(code)}})
      ->Increment();
}

void ApiMetrics::CountDisconnect(DisconnectPhase phase) {
  disconnects_[phase == DisconnectPhase::kStreaming ? 1 : 0]->Increment();
}

}  // namespace sluice::router
