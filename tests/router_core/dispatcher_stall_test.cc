// A dispatcher that stands still: in a call of a turn, or of its own thread between two turns. What
// it published last must not be believed for ever.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "services/router/fleet/dispatcher_thread.h"
#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);  // of a loaded test machine
constexpr absl::Duration kLimit = absl::Milliseconds(300);

bool Eventually(absl::FunctionRef<bool()> condition) {
  for (const absl::Time end = MonotonicNow() + kPatience; MonotonicNow() < end;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return condition();
}

// Calls that pass it stand still while it is closed.
class Gate {
 public:
  void Close() { Set(false); }
  void Open() { Set(true); }
  void Pass() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&open_));
  }

 private:
  void Set(bool open) {
    absl::MutexLock lock(&mu_);
    open_ = open;
  }

  absl::Mutex mu_;
  bool open_ ABSL_GUARDED_BY(mu_) = true;
};

class GatedPort final : public FleetPort {
 public:
  void Send(Action) override { send.Pass(); }
  void Handled(SessionId) override {}
  void Tick(absl::Time now) override {
    tick.Pass();
    last_tick_nanos = absl::ToUnixNanos(now);
  }

  Gate send, tick;
  std::atomic<int64_t> last_tick_nanos{0};
};

class GatedSink final : public GenerationSink {
 public:
  explicit GatedSink(Gate* flush) : flush_(flush) {}
  void OnTokens(absl::Span<const SampledToken>) override {}
  void OnEnd(const GenerationResult&) override {}
  void Flush(bool) override { flush_->Pass(); }

 private:
  Gate* const flush_;
};

class DispatcherStallTest : public ::testing::Test {
 protected:
  // With one worker, which needs no heartbeats.
  void StartRouter(absl::Duration hang_limit) {
    DispatcherOptions options;
    options.core.worker_timeout = absl::Hours(1);
    options.tick_interval = absl::Milliseconds(20);
    options.heartbeat_limit = kLimit;
    options.hang_limit = hang_limit;
    dispatcher_ = std::make_unique<DispatcherThread>(std::move(options), nullptr);
    dispatcher_->Start(&port_);
    dispatcher_->OnWorkerEvent(
        session_, WorkerRegistered{session_, CoreHarness::Info("w", WorkerRole::kBoth)});
    ReportLoad();
    EXPECT_TRUE(BecomesReady());
  }
  void TearDown() override {
    for (Gate* gate : {&port_.send, &port_.tick, &flush_}) gate->Open();
    dispatcher_->Stop();
  }

  void ReportLoad() {
    dispatcher_->OnWorkerEvent(session_, LoadReported{session_, CoreHarness::ReadyLoad()});
  }
  RequestId Submit() {
    GenerationSpec spec;
    spec.id.bytes[0] = 1;
    spec.prompt = {1, 2, 3};
    spec.sampling.max_tokens = 1;
    dispatcher_->Submit(spec, std::make_shared<GatedSink>(&flush_));
    return spec.id;
  }
  static bool SaysSo(const std::string& reason) {
    return absl::StrContains(reason, "the dispatcher has not moved");
  }
  bool BecomesReady() {
    return Eventually([&] { return dispatcher_->NotReadyReason().empty(); });
  }
  void ExpectNotReadyUntil(Gate* gate) {
    EXPECT_TRUE(Eventually([&] { return SaysSo(dispatcher_->NotReadyReason()); }));
    EXPECT_EQ(dispatcher_->NotLiveReason(), "") << "not ready is not yet dead";
    gate->Open();
    EXPECT_TRUE(BecomesReady());
  }

  const SessionId session_{1};
  GatedPort port_;
  Gate flush_;
  std::unique_ptr<DispatcherThread> dispatcher_;
};

TEST(DispatcherLimitsTest, ATickIsMuchMoreFrequent) {
  const DispatcherOptions options;
  EXPECT_LE(options.heartbeat_limit, absl::Seconds(5));
  EXPECT_GE(options.heartbeat_limit, options.tick_interval * 20);
  EXPECT_GE(options.hang_limit, absl::Seconds(60));
}

TEST_F(DispatcherStallTest, AnIdleRouterStaysReady) {
  StartRouter(kLimit);
  const absl::Time late = MonotonicNow() + 2 * kLimit;
  EXPECT_TRUE(Eventually([&] { return absl::FromUnixNanos(port_.last_tick_nanos) >= late; }));
  EXPECT_TRUE(BecomesReady());
  EXPECT_TRUE(Eventually([&] { return dispatcher_->NotLiveReason().empty(); }));
}

TEST_F(DispatcherStallTest, ATickThatDoesNotReturnIsNotReady) {
  StartRouter(DispatcherOptions().hang_limit);
  port_.tick.Close();
  ExpectNotReadyUntil(&port_.tick);
}

TEST_F(DispatcherStallTest, ASendThatDoesNotReturnIsNotReady) {
  StartRouter(DispatcherOptions().hang_limit);
  port_.send.Close();
  Submit();
  ExpectNotReadyUntil(&port_.send);
}

// gRPC's threads still get turns then, in which they renew what is published.
TEST_F(DispatcherStallTest, AFlushThatDoesNotReturnIsNotReady) {
  StartRouter(DispatcherOptions().hang_limit);
  flush_.Close();
  dispatcher_->Cancel(Submit());
  EXPECT_TRUE(Eventually([&] {
    ReportLoad();
    return SaysSo(dispatcher_->NotReadyReason());
  }));
  ExpectNotReadyUntil(&flush_);
}

TEST_F(DispatcherStallTest, ARouterThatStandsStillIsNotLiveInTheEnd) {
  StartRouter(kLimit);
  port_.tick.Close();
  EXPECT_TRUE(Eventually([&] { return SaysSo(dispatcher_->NotLiveReason()); }));
  // A drain that cannot end does not hide it.
  dispatcher_->AnnounceDrain();
  EXPECT_EQ(dispatcher_->NotReadyReason(), "draining");
  EXPECT_TRUE(SaysSo(dispatcher_->NotLiveReason()));
  port_.tick.Open();
  EXPECT_TRUE(Eventually([&] { return dispatcher_->NotLiveReason().empty(); }));
}

}  // namespace
}  // namespace sluice::router
