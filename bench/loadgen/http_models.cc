#include "bench/loadgen/http_models.h"

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "bench/loadgen/deadline_socket.h"
#include "common/clock.h"
#include "simdjson.h"

namespace sluice::loadgen {
namespace {

namespace http = boost::beast::http;

constexpr size_t kMaxBodyBytes = 4 << 20;
constexpr int64_t kMaxContextTokens = 1 << 30;

}  // namespace

absl::StatusOr<HttpAddress> ParseHttpUrl(const std::string& url) {
  absl::string_view rest = url;
  if (!absl::ConsumePrefix(&rest, "http://")) {
    return absl::InvalidArgumentError(absl::StrCat("url: ", url, " does not begin with http://"));
  }
  rest = absl::StripSuffix(rest, "/");
  rest = absl::StripSuffix(rest, "/v1");
  const size_t colon = rest.rfind(':');
  HttpAddress address;
  address.host = std::string(rest.substr(0, colon));
  address.port = colon == absl::string_view::npos ? "80" : std::string(rest.substr(colon + 1));
  int port_number = 0;
  if (address.host.empty() || !absl::SimpleAtoi(address.port, &port_number) || port_number < 1 ||
      port_number > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("url: ", url, " is not http://host:port"));
  }
  return address;
}

absl::StatusOr<int> AskMaxModelLen(const std::string& url, const std::string& model,
                                   absl::Duration timeout) {
  const absl::StatusOr<HttpAddress> address = ParseHttpUrl(url);
  if (!address.ok()) return address.status();
  DeadlineSocket socket;
  socket.set_deadline(MonotonicNow() + timeout);
  boost::system::error_code error = socket.Connect(address->host, address->port);
  http::request<http::empty_body> request(http::verb::get, "/v1/models", 11);
  request.set(http::field::host, absl::StrCat(address->host, ":", address->port));
  if (!error) http::write(socket, request, error);
  boost::beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaxBodyBytes);
  if (!error) http::read(socket, buffer, parser, error);
  if (error) return absl::UnavailableError(absl::StrCat("GET /v1/models: ", error.message()));
  if (parser.get().result_int() != 200) {
    return absl::NotFoundError(absl::StrCat("GET /v1/models: HTTP ", parser.get().result_int()));
  }
  simdjson::dom::parser json;
  simdjson::dom::array models;
  const std::string& body = parser.get().body();
  if (json.parse(body)["data"].get(models) == simdjson::SUCCESS) {
    for (const simdjson::dom::element entry : models) {
      std::string_view id;
      int64_t tokens = 0;
      if (entry["id"].get(id) != simdjson::SUCCESS || id != model) continue;
      if (entry["max_model_len"].get(tokens) != simdjson::SUCCESS) break;
      if (tokens < 1 || tokens > kMaxContextTokens) break;
      return static_cast<int>(tokens);
    }
  }
  return absl::NotFoundError("GET /v1/models has no max_model_len of it");
}

}  // namespace sluice::loadgen
