// Paths -> handlers. Runs on a connection's thread; everything long goes through
// HttpExchange::Prepare.
#pragma once

#include "absl/strings/string_view.h"
#include "services/router/api/api_context.h"
#include "services/router/http/http_exchange.h"
#include "services/router/http/http_server.h"

namespace sluice::router {

// Answers the exchange's request, now or later. `options` and `context` outlive the exchange.
void HandleHttpRequest(const HttpOptions& options, ApiContext* context, HttpExchange* exchange);

// The path's label of the http_requests_total metric; "other" for one that is not here.
absl::string_view RouteLabel(absl::string_view path);

}  // namespace sluice::router
