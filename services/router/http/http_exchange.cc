#include "services/router/http/http_exchange.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/http/openai_format.h"

namespace sluice::router {

std::vector<HttpHeader> RetryHeaders(const ApiError& error) {
  std::vector<HttpHeader> headers = {{"x-should-retry", error.should_retry() ? "true" : "false"}};
  if (const auto retry_after = error.RetryAfter()) {
    const absl::Duration seconds = absl::Ceil(*retry_after, absl::Seconds(1));
    headers.push_back({"Retry-After", absl::StrCat(absl::ToInt64Seconds(seconds))});
    headers.push_back({"retry-after-ms", absl::StrCat(absl::ToInt64Milliseconds(*retry_after))});
  }
  return headers;
}

void RespondError(HttpExchange* exchange, const ApiError& error, std::vector<HttpHeader> headers) {
  for (HttpHeader& header : RetryHeaders(error)) headers.push_back(std::move(header));
  exchange->Respond(error.row().http_status, kJsonContentType, FormatError(error),
                    std::move(headers));
}

}  // namespace sluice::router
