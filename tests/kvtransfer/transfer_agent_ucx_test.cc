// Two agents with the real channel, each on its own thread, as prefill and decode worker run them.
#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "common/clock.h"
#include "common/random.h"
#include "gtest/gtest.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/ucx_channel.h"

namespace sluice {
namespace {

constexpr int kBlockTokens = 64;

// A transfer thread: polls, sleeps, and runs what others post.
class Worker {
 public:
  explicit Worker(const std::string& tls) : incarnation(RandomUint64()) {
    UcxOptions options;
    options.tls = tls;
    if (tls == "tcp") options.net_devices = "lo";
    options.expect_transport = tls == "tcp" ? "tcp" : "shm";
    absl::StatusOr<std::unique_ptr<KvChannel>> channel = CreateUcxChannel(options);
    if (!channel.ok()) {
      ADD_FAILURE() << channel.status();
      std::abort();
    }
    channel_ = *std::move(channel);
    TransferOptions transfers;  // patient: sanitizers on a busy machine are slow
    transfers.peer_timeout = absl::Seconds(10);
    transfers.lease = absl::Seconds(20);
    agent_ = TransferAgent::Create(transfers, incarnation, channel_.get(), &RealClock());
    address = channel_->LocalAddress();
    thread_ = std::thread([this] { Loop(); });
  }
  ~Worker() {
    stop_ = true;
    channel_->Wake();
    thread_.join();
  }
  void Post(std::function<void(TransferAgent*)> task) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      tasks_.push_back(std::move(task));
    }
    channel_->Wake();
  }
  // Waits for a report that satisfies `match`.
  // A transfer that ended badly ends the wait with its reason.
  bool WaitFor(const std::function<bool(const TransferEvent&)>& match) {
    absl::Time deadline = MonotonicNow() + absl::Seconds(30);
    while (MonotonicNow() < deadline) {
      {
        std::lock_guard<std::mutex> lock(mu_);
        for (const TransferEvent& event : events_) {
          if (match(event)) return true;
          const auto* sent = std::get_if<SendEnded>(&event);
          const auto* received = std::get_if<ReceiveEnded>(&event);
          absl::Status status = sent != nullptr       ? sent->status
                                : received != nullptr ? received->status
                                                      : absl::OkStatus();
          if (!status.ok()) {
            ADD_FAILURE() << status;
            return false;
          }
        }
      }
      absl::SleepFor(absl::Milliseconds(2));
    }
    return false;
  }
  uint64_t num_polls() const { return num_polls_; }

  const Incarnation incarnation;
  std::string address;

 private:
  void Loop() {
    std::vector<TransferEvent> events;
    while (!stop_) {
      std::vector<std::function<void(TransferAgent*)>> tasks;
      {
        std::lock_guard<std::mutex> lock(mu_);
        tasks.swap(tasks_);
      }
      for (auto& task : tasks) task(agent_.get());
      bool moved = agent_->Poll(&events);
      ++num_polls_;
      {
        std::lock_guard<std::mutex> lock(mu_);
        for (TransferEvent& event : events) events_.push_back(std::move(event));
      }
      events.clear();
      if (!moved) channel_->WaitForActivity(agent_->NextDeadline() - MonotonicNow());
    }
  }

  std::unique_ptr<KvChannel> channel_;
  std::unique_ptr<TransferAgent> agent_;  // used by thread_ only
  std::mutex mu_;
  std::vector<std::function<void(TransferAgent*)>> tasks_;
  std::vector<TransferEvent> events_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> num_polls_{0};
  std::thread thread_;
};

class AgentOverUcx : public ::testing::TestWithParam<std::tuple<std::string, size_t>> {};

TEST_P(AgentOverUcx, MovesManySequencesAndThenSleeps) {
  const auto& tls = std::get<0>(GetParam());
  const size_t block_bytes = std::get<1>(GetParam());
  const int num_blocks = static_cast<int>((4 << 20) / block_bytes);
  constexpr int kRequests = 4;
  std::vector<std::vector<uint8_t>> sources, destinations;  // outlive the channels
  for (int r = 0; r < kRequests; ++r) {
    sources.emplace_back(block_bytes * static_cast<size_t>(num_blocks));
    for (size_t i = 0; i < sources[r].size(); ++i) {
      sources[r][i] = static_cast<uint8_t>((i * 31 + i / 4096 * 7 + static_cast<size_t>(r)) % 251);
    }
    destinations.emplace_back(sources[r].size());
  }
  Worker p(tls), d(tls);
  absl::Time begin = MonotonicNow();
  for (int r = 0; r < kRequests; ++r) {
    ReceiveSpec receive;
    receive.request.bytes[0] = static_cast<uint8_t>(r);
    receive.attempt = Attempt(1);
    receive.end_token = num_blocks * kBlockTokens;
    receive.block_bytes = block_bytes;
    for (int i = 0; i < num_blocks; ++i) {
      receive.blocks.push_back(
          absl::MakeSpan(destinations[r]).subspan(i * block_bytes, block_bytes));
    }
    d.Post([&, receive, r](TransferAgent* decode) {
      absl::StatusOr<TransferId> transfer = decode->Reserve(receive);
      ASSERT_TRUE(transfer.ok());
      SendSpec send;
      send.transfer = *transfer;
      send.request = receive.request;
      send.attempt = receive.attempt;
      send.peer_address = d.address;
      send.peer_incarnation = d.incarnation;
      send.end_token = receive.end_token;
      send.block_bytes = block_bytes;
      p.Post([&, send, r](TransferAgent* prefill) {
        ASSERT_TRUE(prefill->StartSend(send).ok());
        for (int i = 0; i < num_blocks; i += num_blocks / 4) {
          std::vector<absl::Span<const uint8_t>> blocks;
          for (int j = i; j < i + num_blocks / 4; ++j) {
            blocks.push_back(absl::MakeConstSpan(sources[r]).subspan(j * block_bytes, block_bytes));
          }
          ASSERT_TRUE(prefill
                          ->Offer(send.transfer, i * kBlockTokens,
                                  (i + num_blocks / 4) * kBlockTokens, std::move(blocks))
                          .ok());
        }
        ASSERT_TRUE(prefill->FinishSend(send.transfer, {r, 0, {}}).ok());
      });
    });
  }
  for (int r = 0; r < kRequests; ++r) {
    EXPECT_TRUE(d.WaitFor([r](const TransferEvent& event) {
      const auto* received = std::get_if<Received>(&event);
      return received != nullptr && received->first.token == r;
    })) << r;
    EXPECT_TRUE(p.WaitFor([r](const TransferEvent& event) {
      const auto* ended = std::get_if<SendEnded>(&event);
      return ended != nullptr && ended->request.bytes[0] == r && ended->status.ok();
    })) << r;
    EXPECT_TRUE(sources[r] == destinations[r]) << r;
  }
  absl::Duration elapsed = MonotonicNow() - begin;
  RecordProperty("megabytes_per_second",
                 static_cast<int>(kRequests * 4 / absl::ToDoubleSeconds(elapsed)));
  absl::SleepFor(absl::Milliseconds(300));
  uint64_t polls = p.num_polls() + d.num_polls();
  absl::SleepFor(absl::Seconds(2));
  EXPECT_LT(p.num_polls() + d.num_polls() - polls, 100u);  // UCX's keep-alive and nothing else
}

INSTANTIATE_TEST_SUITE_P(Transports, AgentOverUcx,
                         ::testing::Combine(::testing::Values("tcp", "shm"),
                                            ::testing::Values(size_t{16} << 10, size_t{1} << 20)));

}  // namespace
}  // namespace sluice
