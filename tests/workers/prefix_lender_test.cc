// What a decode worker pins for the prefill workers that ask for a cached prefix.
#include "services/decode_worker/prefix_lender.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "metrics/metrics.h"
#include "services/worker_runtime/worker_metrics.h"
#include "tests/support/fake_engine.h"

namespace sluice::worker {
namespace {

class RecordingTransfers final : public TransferPort {
 public:
  void StartSend(SendSpec spec) override { started.push_back(spec.request); }
  void Offer(TransferId, int, int, std::vector<absl::Span<const uint8_t>> blocks) override {
    blocks_offered += static_cast<int>(blocks.size());
  }
  void FinishSend(TransferId, FirstToken) override {}
  void CancelSend(TransferId, absl::Status) override { ++cancelled; }
  void Reserve(ReceiveSpec) override {}
  void Fetch(FetchSpec) override {}
  void CancelReceive(TransferId, absl::Status) override {}

  std::vector<RequestId> started;
  int blocks_offered = 0;
  int cancelled = 0;
};

class PrefixLenderTest : public ::testing::Test {
 protected:
  static constexpr int kNumBlocks = 64;

  PrefixLenderTest() : metrics_(&registry_) {
    SchedulerOptions options;
    options.max_model_len = 1024;
    fake_ = sluice::testing::MakeFakeEngine(options, kNumBlocks);
    context_.engine = fake_.engine.get();
    context_.transfers = &transfers_;
    context_.metrics = &metrics_;
    context_.clock = &RealClock();
    // Three blocks of prefix for every reservation below.
    EXPECT_TRUE(fake_.engine->AddRun(Prompt(1)).ok());
    while (fake_.engine->HasWork()) fake_.engine->Step();
  }

  static SequenceInput Prompt(uint64_t request) {
    SequenceInput input;
    input.key = sluice::testing::MakeKey(request);
    input.tokens = sluice::testing::MakeTokens(1, 200);
    input.sampling.max_tokens = 1;
    return input;
  }
  // Tokens [0, end) for a new reservation of this request, sent as `into`.
  FetchRequested Fetch(uint64_t request, const TransferId& into, int end) {
    const SequenceInput input = Prompt(request);
    EXPECT_TRUE(fake_.engine->Reserve(input).ok());
    FetchRequested fetch;
    fetch.send.transfer = into;
    fetch.send.request = input.key.request;
    fetch.send.attempt = input.key.attempt;
    fetch.send.end_token = end;
    return fetch;
  }
  static SendEnded End(const FetchRequested& fetch) {
    SendEnded ended;
    ended.transfer = fetch.send.transfer;
    ended.request = fetch.send.request;
    ended.attempt = fetch.send.attempt;
    return ended;
  }
  int64_t NumSending() const { return fake_.engine->Load().blocks.sending; }

  MetricsRegistry registry_;
  WorkerMetrics metrics_;
  sluice::testing::FakeEngine fake_;
  RecordingTransfers transfers_;
  HandlerContext context_;
};

TEST_F(PrefixLenderTest, PinsUntilTheSendHasEnded) {
  PrefixLender lender(context_);
  TransferId into;
  into.bytes[0] = 1;
  const FetchRequested fetch = Fetch(2, into, 128);
  lender.Lend(fetch, /*wanted=*/true);
  EXPECT_EQ(transfers_.blocks_offered, 2);
  fake_.engine->AbandonReservation(sluice::testing::MakeKey(2), 0);
  EXPECT_EQ(NumSending(), 2);
  EXPECT_TRUE(lender.OnSendEnded(End(fetch)));
  EXPECT_EQ(NumSending(), 0);
  EXPECT_FALSE(lender.OnSendEnded(End(fetch)));
}

// The asker names the transfer, and a wrong one may name the same for two reservations.
TEST_F(PrefixLenderTest, ATransferThatIsAskedForTwiceIsLentOnce) {
  PrefixLender lender(context_);
  TransferId into;
  into.bytes[0] = 1;
  const FetchRequested first = Fetch(2, into, 64);
  const FetchRequested second = Fetch(3, into, 128);
  lender.Lend(first, /*wanted=*/true);
  lender.Lend(second, /*wanted=*/true);
  lender.Lend(second, /*wanted=*/false);
  EXPECT_EQ(transfers_.started, std::vector<RequestId>{first.send.request});
  EXPECT_EQ(transfers_.cancelled, 0);
  EXPECT_EQ(NumSending(), 1);
  EXPECT_TRUE(lender.OnSendEnded(End(first)));
  EXPECT_EQ(NumSending(), 0);
  EXPECT_FALSE(lender.OnSendEnded(End(second)));
  for (const uint64_t request : {2, 3}) {
    fake_.engine->AbandonReservation(sluice::testing::MakeKey(request), 0);
  }
  const BlockCounts blocks = fake_.engine->Load().blocks;
  EXPECT_EQ(blocks.free + blocks.cached, kNumBlocks);
}

}  // namespace
}  // namespace sluice::worker
