#include "services/worker_runtime/transfer_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "metrics/metrics.h"
#include "tests/support/memory_channel.h"

namespace sluice::worker {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

// What a test says of endpoints; moves nothing.
class EndpointList {
 public:
  void Set(std::vector<PeerTransport> transports) {
    absl::MutexLock lock(&mu_);
    transports_ = std::move(transports);
    num_reads_ = 0;
  }
  std::vector<PeerTransport> Read() {
    absl::MutexLock lock(&mu_);
    ++num_reads_;
    return transports_;
  }
  // The thread that reads goes on after each, so all but the last were made use of.
  bool AwaitReads(int number) {
    const auto enough = [this, number] { return num_reads_ > number; };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
  }

 private:
  absl::Mutex mu_;
  std::vector<PeerTransport> transports_;
  int num_reads_ = 0;
};

class IdleAgent : public TransferAgent {
 public:
  explicit IdleAgent(EndpointList* endpoints) : endpoints_(endpoints) {}

  absl::Status StartSend(const SendSpec&) override { return absl::OkStatus(); }
  absl::Status Offer(TransferId, int, int, std::vector<absl::Span<const uint8_t>>) override {
    return absl::OkStatus();
  }
  absl::Status FinishSend(TransferId, const FirstToken&) override { return absl::OkStatus(); }
  void CancelSend(TransferId, absl::Status) override {}
  absl::StatusOr<TransferId> Reserve(const ReceiveSpec&) override { return TransferId(); }
  void CancelReceive(TransferId, absl::Status) override {}
  absl::StatusOr<TransferId> Fetch(const FetchSpec&) override { return TransferId(); }
  bool Poll(std::vector<TransferEvent>*) override { return false; }
  absl::Time NextDeadline() const override { return MonotonicNow() + absl::Milliseconds(20); }
  TransferStats Stats() const override { return {}; }
  std::vector<PeerTransport> Transports() const override { return endpoints_->Read(); }

 private:
  EndpointList* const endpoints_;
};

PeerTransport Endpoint(uint64_t id, const std::string& name, uint64_t sent, uint64_t received) {
  PeerTransport endpoint;
  endpoint.id = PeerId(id);
  endpoint.peer = name;
  endpoint.transport = "shm";
  endpoint.bytes_sent = sent;
  endpoint.bytes_received = received;
  return endpoint;
}

class TransferLoopTest : public ::testing::Test {
 protected:
  TransferLoopTest()
      : board_(MonotonicNow()),
        metrics_(&registry_),
        loop_(
            hub_.NewChannel(), std::make_unique<IdleAgent>(&endpoints_), &RealClock(), &board_,
            &metrics_, [](const TransferLoop::Report&) { return true; }, [] {}) {
    loop_.Start();
  }
  double Bytes(const std::string& direction) {
    return registry_
        .AddCounter("sluice_kv_transfer_bytes_total", "KV bytes moved, by what UCX chose.",
                    {{"direction", direction}, {"transport", "shm"}})
        ->Value();
  }
  void Publish(std::vector<PeerTransport> endpoints) {
    endpoints_.Set(std::move(endpoints));
    ASSERT_TRUE(endpoints_.AwaitReads(1));
  }

  testing::MemoryHub hub_;
  EndpointList endpoints_;
  MetricsRegistry registry_;
  LoadBoard board_;
  WorkerMetrics metrics_;
  TransferLoop loop_;
};

// A worker was restarted under its name: the endpoint to its former life stays for a while.
TEST_F(TransferLoopTest, TwoEndpointsOfOneNameAreCountedOnce) {
  Publish({Endpoint(1, "d", 1000, 10)});
  EXPECT_EQ(Bytes("send"), 1000);
  for (int i = 0; i < 2; ++i) {
    Publish({Endpoint(1, "d", 1000, 10), Endpoint(2, "d", 500, 5)});
    EXPECT_EQ(Bytes("send"), 1500);
    EXPECT_EQ(Bytes("recv"), 15);
    Publish({Endpoint(2, "d", 500, 5), Endpoint(1, "d", 1000, 10)});
  }
  Publish({Endpoint(2, "d", 600, 5)});
  EXPECT_EQ(Bytes("send"), 1600);
  EXPECT_EQ(Bytes("recv"), 15);
}

TEST_F(TransferLoopTest, EndpointsThatGoTakeNothingOfOthersAlong) {
  std::vector<PeerTransport> endpoints = {Endpoint(1, "stays", 7, 0)};
  for (uint64_t id = 2; id < 200; ++id) {
    endpoints.push_back(Endpoint(id, absl::StrCat("d", id), 1, 0));
  }
  Publish(endpoints);
  EXPECT_EQ(Bytes("send"), 7 + 198);
  endpoints.resize(1);
  Publish(endpoints);
  EXPECT_EQ(Bytes("send"), 7 + 198);
}

class FakeClock : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixNanos(nanos_.load()); }
  void Advance(absl::Duration by) { nanos_ += absl::ToInt64Nanoseconds(by); }

 private:
  std::atomic<int64_t> nanos_{1'000'000'000};
};

// As an agent with nothing to do: asks its channel, and has no deadline.
class PollingAgent final : public IdleAgent {
 public:
  PollingAgent(EndpointList* endpoints, KvChannel* channel, std::atomic<int>* num_polls)
      : IdleAgent(endpoints), channel_(channel), num_polls_(num_polls) {}

  bool Poll(std::vector<TransferEvent>*) override {
    ++*num_polls_;
    std::vector<ChannelEvent> events;
    return channel_->Poll(&events);
  }
  absl::Time NextDeadline() const override { return absl::InfiniteFuture(); }

 private:
  KvChannel* const channel_;
  std::atomic<int>* const num_polls_;
};

class TransferLoopBeatTest : public ::testing::Test {
 protected:
  static constexpr absl::Duration kLimit = absl::Minutes(1);

  TransferLoopBeatTest() : board_(clock_.Now()), metrics_(&registry_) {
    std::unique_ptr<KvChannel> channel = hub_.NewChannel();
    auto agent = std::make_unique<PollingAgent>(&endpoints_, channel.get(), &num_polls_);
    loop_ = std::make_unique<TransferLoop>(
        std::move(channel), std::move(agent), &clock_, &board_, &metrics_,
        [](const TransferLoop::Report&) { return true; }, [] {});
    loop_->Start();
  }
  ~TransferLoopBeatTest() override { hub_.HoldPolls(false); }

  static bool Eventually(absl::FunctionRef<bool()> condition) {
    for (const absl::Time end = MonotonicNow() + kPatience; MonotonicNow() < end;) {
      if (condition()) return true;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return condition();
  }
  // Of the test's clock, which stands still but for the test.
  bool BeatIsOld() const { return loop_->HeartbeatAge() >= kLimit; }

  FakeClock clock_;
  testing::MemoryHub hub_;
  EndpointList endpoints_;
  MetricsRegistry registry_;
  LoadBoard board_;
  WorkerMetrics metrics_;
  std::atomic<int> num_polls_{0};
  std::unique_ptr<TransferLoop> loop_;  // ends before what it uses
};

TEST_F(TransferLoopBeatTest, AnIdleThreadBeatsAndDoesNotSpin) {
  ASSERT_TRUE(Eventually([&] { return num_polls_ > 0; }));
  const int before = num_polls_;
  clock_.Advance(kLimit);
  EXPECT_TRUE(Eventually([&] { return !BeatIsOld(); }));
  EXPECT_LE(num_polls_ - before, 10);
}

TEST_F(TransferLoopBeatTest, AChannelThatDoesNotReturnStopsTheBeat) {
  hub_.HoldPolls(true);
  loop_->CancelReceive(TransferId(), absl::CancelledError("wakes the thread"));
  ASSERT_TRUE(Eventually([&] { return hub_.num_held_polls() == 1; }));
  clock_.Advance(kLimit / 2);
  EXPECT_FALSE(BeatIsOld());
  clock_.Advance(kLimit / 2);
  EXPECT_TRUE(BeatIsOld());
  hub_.HoldPolls(false);
  EXPECT_TRUE(Eventually([&] { return !BeatIsOld(); }));
}

}  // namespace
}  // namespace sluice::worker
