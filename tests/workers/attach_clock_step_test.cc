// The worker's end of Attach while somebody sets the wall clock back.
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "services/rpc/attach_client.h"
#include "sluice/v1/fleet.pb.h"
#include "tests/support/wall_clock_step.h"
#include "tests/workers/fake_router.h"

namespace sluice::rpc {
namespace {

class CountingHandler : public AttachHandler {
 public:
  v1::WorkerMessage OnConnect(SessionId) override {
    v1::WorkerMessage message;
    message.mutable_register_()->set_worker_id("w");
    return message;
  }
  void OnWelcome(SessionId, const std::string&) override {}
  void OnMessage(SessionId, const v1::RouterMessage&) override {}
  v1::WorkerMessage OnHeartbeat(SessionId) override {
    v1::WorkerMessage message;
    message.mutable_load()->set_running_requests(++heartbeats_);
    return message;
  }
  void OnDisconnect(SessionId, const absl::Status&) override {}

 private:
  int heartbeats_ = 0;  // of the client's thread
};

TEST(AttachClockStepTest, HeartbeatsGoOn) {
  testing::FakeRouter router;
  CountingHandler handler;
  AttachOptions options;
  options.router_address = router.address();
  auto client = AttachClient::Start(options, &handler);
  ASSERT_TRUE(router.WaitForWorker("w"));
  const auto await_heartbeats = [&router](int64_t number) {
    const absl::Time end = MonotonicNow() + absl::Seconds(20);
    while (router.last_load("w").running_requests() < number && MonotonicNow() < end) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    return router.last_load("w").running_requests() >= number;
  };
  ASSERT_TRUE(await_heartbeats(2));
  const testing::WallClockStep step(absl::Hours(1));
  EXPECT_TRUE(await_heartbeats(router.last_load("w").running_requests() + 5));
}

// The pause before a router is dialled again.
TEST(AttachClockStepTest, RoutersAreDialledAgain) {
  CountingHandler handler;
  AttachOptions options;
  options.backoff_max = absl::Milliseconds(300);
  std::unique_ptr<AttachClient> client;
  auto router = std::make_unique<testing::FakeRouter>();
  options.router_address = router->address();
  client = AttachClient::Start(options, &handler);
  ASSERT_TRUE(router->WaitForWorker("w"));
  const testing::WallClockStep step(absl::Hours(1));
  const int port = router->port();
  router.reset();
  router = std::make_unique<testing::FakeRouter>(port);
  const absl::Time end = MonotonicNow() + absl::Seconds(20);
  while (!router->IsAttached("w") && MonotonicNow() < end) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_TRUE(router->IsAttached("w"));
}

}  // namespace
}  // namespace sluice::rpc
