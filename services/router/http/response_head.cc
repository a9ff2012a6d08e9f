#include "services/router/http/response_head.h"

#include <boost/beast/http/status.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace sluice::router {
namespace {

namespace http = boost::beast::http;

// What pages of cors_allow_origin may read besides the body.
constexpr char kExposedHeaders[] = "x-request-id, retry-after, retry-after-ms, x-should-retry";

}  // namespace

std::string FormatHead(const ResponseHead& head) {
  const auto reason =
      http::obsolete_reason(http::int_to_status(static_cast<unsigned>(head.status)));
  std::string text = absl::StrCat(
      "HTTP/1.1 ", head.status, " ", absl::string_view(reason.data(), reason.size()),
      "\r\nDate: ", absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()),
      "\r\nServer: sluice\r\n");
  if (!head.request_id.empty()) absl::StrAppend(&text, "x-request-id: ", head.request_id, "\r\n");
  if (!head.content_type.empty()) {
    absl::StrAppend(&text, "Content-Type: ", head.content_type, "\r\n");
  }
  if (!head.cors_allow_origin.empty()) {
    absl::StrAppend(&text, "Access-Control-Allow-Origin: ", head.cors_allow_origin,
                    "\r\nAccess-Control-Expose-Headers: ", kExposedHeaders, "\r\n");
  }
  for (const HttpHeader& header : head.headers) {
    absl::StrAppend(&text, header.name, ": ", header.value, "\r\n");
  }
  if (head.close) {
    absl::StrAppend(&text, "Connection: close\r\n");
  } else if (head.http_1_0) {
    absl::StrAppend(&text, "Connection: keep-alive\r\n");
  }
  return text;
}

}  // namespace sluice::router
