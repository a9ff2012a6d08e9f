// The head of an HTTP answer: status line and headers, without the empty line that ends them, so
// that the caller can add those of the body. Any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "services/router/http/http_exchange.h"

namespace sluice::router {

struct ResponseHead {
  int status = 200;
  absl::string_view content_type;       // "": no body
  absl::string_view request_id;         // "": the request was not even read
  absl::string_view cors_allow_origin;  // "": no CORS headers
  std::vector<HttpHeader> headers;      // further ones
  bool close = false;                   // the connection ends with this answer
  bool http_1_0 = false;  // the client's version, for which staying is not the default
};

std::string FormatHead(const ResponseHead& head);

}  // namespace sluice::router
