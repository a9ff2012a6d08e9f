// Retry-After as HTTP clients read it from a real dispatcher.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "services/router/fleet/dispatcher_thread.h"
#include "services/router/http/http_server.h"
#include "tests/router_api/http_client.h"

namespace sluice::router {
namespace {

// No worker ever comes.
class NoFleet final : public FleetPort {
 public:
  void Send(Action) override {}
  void Handled(SessionId) override {}
  void Tick(absl::Time) override {}
};

HttpReply Ask(const DispatcherOptions& dispatcher_options) {
  MetricsRegistry registry;
  NoFleet fleet;
  DispatcherThread dispatcher(dispatcher_options, /*observer=*/nullptr);
  dispatcher.Start(&fleet);
  ApiOptions options;
  options.served_model_names = {"m"};
  const auto context =
      ApiContext::Create(options,
                         LoadServedModel(SLUICE_SOURCE_DIR "/models/deepseek-tiny").value(),
                         &dispatcher, &registry)
          .value();
  const auto server = StartHttpServer(HttpOptions(), context.get()).value();
  return HttpClient(server->port()).Post("/v1/completions", R"({"prompt": "Go", "max_tokens": 2})");
}

TEST(RetryAfterTest, WithoutWorkersItIsTheTablesDefault) {
  HttpReply reply = Ask(DispatcherOptions());
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(reply.headers["retry-after"], "2");
  EXPECT_EQ(reply.headers["retry-after-ms"], "2000");
}

TEST(RetryAfterTest, AQueueThatDoesNotMoveTakesTheLongest) {
  DispatcherOptions options;
  options.max_mailbox_requests = 0;
  HttpReply reply = Ask(options);
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.headers["retry-after"], "30");
}

}  // namespace
}  // namespace sluice::router
