// The worker's end of Attach against a router that accepts, refuses, falls silent, vanishes and
// returns.

#include "services/rpc/attach_client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "sluice/v1/fleet.pb.h"
#include "tests/workers/fake_router.h"

namespace sluice::rpc {
namespace {

using testing::FakeRouter;

class RecordingHandler : public AttachHandler {
 public:
  v1::WorkerMessage OnConnect(SessionId session) override {
    absl::MutexLock lock(&mu_);
    log_.push_back("connect");
    latest_ = session;
    v1::WorkerMessage message;
    message.mutable_register_()->set_worker_id("w");
    return message;
  }
  void OnWelcome(SessionId, const std::string& router_id) override { Log("welcome " + router_id); }
  void OnMessage(SessionId, const v1::RouterMessage& message) override {
    Log("message " + message.cancel().reason());
  }
  v1::WorkerMessage OnHeartbeat(SessionId) override {
    v1::WorkerMessage message;
    message.mutable_load()->set_running_requests(++heartbeats_);
    return message;
  }
  void OnDisconnect(SessionId session, const absl::Status& why) override {
    {
      absl::MutexLock lock(&mu_);
      EXPECT_EQ(session, latest_);
      why_ = why;
    }
    Log("disconnect");
  }

  void Log(std::string line) {
    absl::MutexLock lock(&mu_);
    log_.push_back(std::move(line));
  }
  std::vector<std::string> log() const {
    absl::MutexLock lock(&mu_);
    return log_;
  }
  bool WaitForCount(const std::string& line, long count, absl::Duration timeout) {
    const auto have = [&] {
      mu_.AssertReaderHeld();
      return std::count(log_.begin(), log_.end(), line) >= count;
    };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&have), timeout);
  }
  SessionId latest() const {
    absl::MutexLock lock(&mu_);
    return latest_;
  }
  absl::Status why() const {
    absl::MutexLock lock(&mu_);
    return why_;
  }

  std::atomic<int> heartbeats_{0};

 private:
  mutable absl::Mutex mu_;
  std::vector<std::string> log_ ABSL_GUARDED_BY(mu_);
  SessionId latest_ ABSL_GUARDED_BY(mu_);
  absl::Status why_ ABSL_GUARDED_BY(mu_);
};

constexpr absl::Duration kPatience = absl::Seconds(10);

AttachOptions MakeOptions(const std::string& address) {
  AttachOptions options;
  options.router_address = address;
  options.backoff_max = absl::Milliseconds(300);
  return options;
}

v1::WorkerMessage TokenMessage(int index) {
  v1::WorkerMessage message;
  message.mutable_tokens()->add_tokens()->set_index(index);
  return message;
}

TEST(AttachClient, RegistersReportsAndPassesMessagesOn) {
  FakeRouter router;
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
  ASSERT_TRUE(router.WaitForWorker("w"));
  v1::RouterMessage cancel;
  cancel.mutable_cancel()->set_reason("a");
  EXPECT_TRUE(router.Send("w", cancel));
  cancel.mutable_cancel()->set_reason("b");
  EXPECT_TRUE(router.Send("w", cancel));
  ASSERT_TRUE(handler.WaitForCount("message b", 1, kPatience));
  EXPECT_EQ(handler.log(),
            (std::vector<std::string>{"connect", "welcome fake-router", "message a", "message b"}));
  for (int i = 0; i < 1000 && router.last_load("w").running_requests() < 3; ++i) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_GE(router.last_load("w").running_requests(), 3);
}

TEST(AttachClient, SendsInOrderAndOnlyForThePresentSession) {
  FakeRouter router;
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
  ASSERT_TRUE(handler.WaitForCount("welcome fake-router", 1, kPatience));
  while (!client->attached()) absl::SleepFor(absl::Milliseconds(1));
  const SessionId session = handler.latest();
  for (int i = 0; i < 500; ++i) ASSERT_TRUE(client->Send(session, TokenMessage(i)));
  EXPECT_FALSE(client->Send(SessionId(session.value + 1000), TokenMessage(0)));
  router.WaitFor("the last token", [](const FakeRouter::Heard& heard) {
    const auto& tokens = heard.message.tokens().tokens();
    return !tokens.empty() && tokens.rbegin()->index() == 499;
  });
  int expected = 0;
  for (const auto& heard : router.heard()) {
    for (const auto& token : heard.message.tokens().tokens()) {
      EXPECT_EQ(token.index(), expected++);
    }
  }
  EXPECT_EQ(expected, 500);
}

TEST(AttachClient, TokensJoinWhileTheRouterIsBusy) {
  FakeRouter router;
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
  ASSERT_TRUE(handler.WaitForCount("welcome fake-router", 1, kPatience));
  while (!client->attached()) absl::SleepFor(absl::Milliseconds(1));
  router.StopReading(true);
  for (int i = 0; i < 20000; ++i) ASSERT_TRUE(client->Send(handler.latest(), TokenMessage(i)));
  router.StopReading(false);
  router.WaitFor("the last token", [](const FakeRouter::Heard& heard) {
    const auto& tokens = heard.message.tokens().tokens();
    return !tokens.empty() && tokens.rbegin()->index() == 19999;
  });
  EXPECT_LT(router.heard().size(), 10000U);
}

TEST(AttachClient, DialsUntilTheRouterIsThere) {
  int port = 0;
  { port = FakeRouter().port(); }
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions("127.0.0.1:" + std::to_string(port)), &handler);
  ASSERT_TRUE(handler.WaitForCount("disconnect", 2, kPatience));
  EXPECT_FALSE(client->attached());
  FakeRouter router(port);
  EXPECT_TRUE(router.WaitForWorker("w"));
}

TEST(AttachClient, ComesBackAsANewSession) {
  FakeRouter router;
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
  ASSERT_TRUE(handler.WaitForCount("welcome fake-router", 1, kPatience));
  const SessionId first = handler.latest();
  router.DropStreams();
  ASSERT_TRUE(handler.WaitForCount("welcome fake-router", 2, kPatience));
  EXPECT_NE(handler.latest(), first);
  EXPECT_FALSE(client->Send(first, TokenMessage(0)));
}

TEST(AttachClient, SilentRouterIsDeadWithinTwoSeconds) {
  FakeRouter router;
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
  ASSERT_TRUE(handler.WaitForCount("welcome fake-router", 1, kPatience));
  absl::SleepFor(absl::Milliseconds(500));
  const absl::Time muted = MonotonicNow();
  router.Mute(true);
  ASSERT_TRUE(handler.WaitForCount("disconnect", 1, kPatience));
  const absl::Duration took = MonotonicNow() - muted;
  EXPECT_GE(took, absl::Seconds(1));
  EXPECT_LE(took, absl::Seconds(4)) << "1.5 s, and room for a busy machine";
  EXPECT_EQ(handler.why().code(), absl::StatusCode::kUnavailable);
  router.Mute(false);
  EXPECT_TRUE(handler.WaitForCount("welcome fake-router", 2, kPatience));
}

TEST(AttachClient, RefusalIsNotASession) {
  FakeRouter router;
  router.RefuseWith("wrong model");
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
  ASSERT_TRUE(handler.WaitForCount("disconnect", 2, kPatience));
  EXPECT_FALSE(client->attached());
  EXPECT_NE(handler.why().message().find("wrong model"), std::string::npos) << handler.why();
  EXPECT_FALSE(client->Send(handler.latest(), TokenMessage(0)));
  router.RefuseWith("");
  EXPECT_TRUE(router.WaitForWorker("w"));
}

TEST(AttachClient, SlowRouterIsCutOff) {
  FakeRouter router;
  RecordingHandler handler;
  AttachOptions options = MakeOptions(router.address());
  options.max_queued_bytes = 1 << 20;
  auto client = AttachClient::Start(options, &handler);
  ASSERT_TRUE(handler.WaitForCount("welcome fake-router", 1, kPatience));
  while (!client->attached()) absl::SleepFor(absl::Milliseconds(1));
  router.StopReading(true);
  v1::WorkerMessage big;
  big.mutable_busy()->set_reason(std::string(64 << 10, 'x'));
  const SessionId session = handler.latest();
  bool refused = false;
  for (int i = 0; i < 10000 && !refused; ++i) refused = !client->Send(session, big);
  EXPECT_TRUE(refused);
  ASSERT_TRUE(handler.WaitForCount("disconnect", 1, kPatience));
  EXPECT_EQ(handler.why().code(), absl::StatusCode::kResourceExhausted);
  router.StopReading(false);
}

TEST(AttachClient, StopSendsWhatIsQueued) {
  FakeRouter router;
  RecordingHandler handler;
  auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
  ASSERT_TRUE(handler.WaitForCount("welcome fake-router", 1, kPatience));
  while (!client->attached()) absl::SleepFor(absl::Milliseconds(1));
  for (int i = 0; i < 100; ++i) {
    v1::WorkerMessage ended;
    ended.mutable_ended()->set_attempt(static_cast<uint32_t>(i + 1));
    ASSERT_TRUE(client->Send(handler.latest(), ended));
  }
  client->Stop();
  router.WaitFor("the last message", [](const FakeRouter::Heard& heard) {
    return heard.message.ended().attempt() == 100;
  });
}

TEST(AttachClient, StopNeverHangs) {
  RecordingHandler handler;
  RecordingHandler other_handler;
  const auto stop_within = [](AttachClient* client, absl::Duration limit) {
    const absl::Time begin = MonotonicNow();
    client->Stop();
    EXPECT_LE(MonotonicNow() - begin, limit);
  };
  {
    // Nobody there, and an address that swallows packets (TEST-NET-1).
    auto absent = AttachClient::Start(MakeOptions("127.0.0.1:1"), &handler);
    auto blackhole = AttachClient::Start(MakeOptions("192.0.2.1:7000"), &other_handler);
    absl::SleepFor(absl::Milliseconds(100));
    stop_within(absent.get(), absl::Seconds(2));
    stop_within(blackhole.get(), absl::Seconds(2));
  }
  {
    FakeRouter router;
    auto client = AttachClient::Start(MakeOptions(router.address()), &handler);
    ASSERT_TRUE(router.WaitForWorker("w"));
    router.StopReading(true);
    router.Mute(true);
    stop_within(client.get(), absl::Seconds(3));
  }
}

}  // namespace
}  // namespace sluice::rpc
