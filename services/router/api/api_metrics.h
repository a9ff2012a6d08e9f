// Metric families of the public fronts. Created once per router, every closed label set pre-created
// so that counters exist at 0. Updating is thread-safe.
#pragma once

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "metrics/metrics.h"

namespace sluice::router {

enum class Front { kHttp, kGrpc };
// Where a request was when its client went away.
enum class DisconnectPhase { kBeforeFirstToken, kStreaming };

class ApiMetrics {
 public:
  explicit ApiMetrics(MetricsRegistry* registry);

  // `route` is of the closed set of routes ("other" for unknown paths); `http_status` as sent, or
  // 499 when the client had gone.
  void CountHttpRequest(absl::string_view route, int http_status);
  // `code` is the gRPC status code's number.
  void CountGrpcRequest(absl::string_view method, int code);
  void CountDisconnect(DisconnectPhase phase);

  Gauge* streams(Front front) const { return fronts_[static_cast<int>(front)].streams; }
  Gauge* buffered_bytes(Front front) const {
    return fronts_[static_cast<int>(front)].buffered_bytes;
  }
  Counter* slow_client_evictions(Front front) const {
    return fronts_[static_cast<int>(front)].slow_client_evictions;
  }
  Gauge* http_connections() const { return http_connections_; }

  // The front's share of a time to first token; the dispatcher's metrics have the rest.
  void ObserveFrontStages(absl::Duration parse, absl::Duration tokenize, absl::Duration detokenize);

 private:
  struct PerFront {
    Gauge* streams = nullptr;
    Gauge* buffered_bytes = nullptr;
    Counter* slow_client_evictions = nullptr;
  };

  MetricsRegistry* const registry_;
  PerFront fronts_[2];
  // Constant after construction: route and code of the counters that need no look-up by label.
  absl::flat_hash_map<std::pair<absl::string_view, int>, Counter*> http_requests_;
  Gauge* http_connections_ = nullptr;
  Counter* disconnects_[2] = {};
  Histogram* parse_ = nullptr;
  Histogram* tokenize_ = nullptr;
  Histogram* detokenize_ = nullptr;
};

}  // namespace sluice::router
