// An HTTP server on a free loopback port over the scripted dispatcher.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "services/router/http/http_server.h"
#include "tests/router_api/api_fixture.h"
#include "tests/router_api/http_client.h"

namespace sluice::router {

using Json = nlohmann::json;

class HttpFixture : public ApiFixture {
 protected:
  explicit HttpFixture(HttpOptions options = {}, ApiOptions api_options = {})
      : ApiFixture(std::move(api_options)) {
    auto server = StartHttpServer(options, context_.get());
    if (!server.ok()) {
      ADD_FAILURE() << server.status();
      std::abort();
    }
    server_ = *std::move(server);
  }

  int port() const { return server_->port(); }
  HttpReply Post(const std::string& path, const Json& body, const std::string& headers = "") {
    return HttpClient(port()).Post(path, body.dump(), headers);
  }
  HttpReply PostRaw(const std::string& path, const std::string& body) {
    return HttpClient(port()).Post(path, body);
  }
  HttpReply Get(const std::string& path) { return HttpClient(port()).Get(path); }

  static Json ChatBody(const std::string& content = "Hello") {
    return {{"model", "deepseek-tiny"},
            {"messages", Json::array({{{"role", "user"}, {"content", content}}})}};
  }
  static Json CompletionBody(const std::string& prompt = "Once") {
    return {{"model", "deepseek-tiny"}, {"prompt", prompt}, {"max_tokens", 64}};
  }
  // Waits until a gauge or counter line of the metrics has this value.
  bool WaitForMetric(const std::string& line_start, const std::string& value) {
    for (int i = 0; i < 200; ++i) {
      const std::string text = MetricsText();
      if (text.find("\n" + line_start + " " + value + "\n") != std::string::npos) return true;
      absl::SleepFor(absl::Milliseconds(10));
    }
    ADD_FAILURE() << line_start << " never became " << value;
    return false;
  }

  std::unique_ptr<HttpServer> server_;
};

// "code" of an error answer.
inline std::string ErrorCode(const HttpReply& reply) {
  const Json json = Json::parse(reply.body, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.contains("error")) return "not an error: " + reply.body;
  EXPECT_FALSE(json["error"]["type"].get<std::string>().empty());
  return json["error"]["code"];
}

}  // namespace sluice::router
