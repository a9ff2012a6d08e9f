#include "services/worker_runtime/transfer_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
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

}  // namespace
}  // namespace sluice::worker
