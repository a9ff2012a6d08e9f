// Two agents over a network without faults, or with exactly the one that a test is about.
#include "kvtransfer/agent/transfer_agent.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/channel/sim_channel.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;

constexpr int kBlockTokens = 64;
constexpr size_t kBlockBytes = 5000;
constexpr Incarnation kPrefill{1};
constexpr Incarnation kDecode{2};

// One process: channel, agent, what the agent reported, and memory for 64 blocks.
struct Node {
  Node(SimNetwork* network, const std::string& name, Incarnation incarnation,
       const TransferOptions& options)
      : channel(network->NewChannel(name)),
        agent(TransferAgent::Create(options, incarnation, channel.get(), network)),
        memory(64 * kBlockBytes) {}
  absl::Span<uint8_t> Block(int i) {
    return absl::MakeSpan(memory).subspan(static_cast<size_t>(i) * kBlockBytes, kBlockBytes);
  }
  template <typename Event>
  std::vector<Event> All() const {
    std::vector<Event> all;
    for (const TransferEvent& event : events) {
      if (const auto* match = std::get_if<Event>(&event)) all.push_back(*match);
    }
    return all;
  }
  std::unique_ptr<SimChannel> channel;
  std::unique_ptr<TransferAgent> agent;
  std::vector<uint8_t> memory;
  std::vector<TransferEvent> events;
  bool polled = true;
};

class TransferAgentTest : public ::testing::Test {
 protected:
  TransferAgentTest() : network_(1) {
    options_.target_message_bytes = 3 * kBlockBytes;
    Restart();
  }
  void Restart() {
    p_.emplace(&network_, "p", kPrefill, options_);
    d_.emplace(&network_, "d", kDecode, options_);
    for (size_t i = 0; i < p_->memory.size(); ++i) {
      p_->memory[i] = static_cast<uint8_t>(i * 2654435761u >> 16);
    }
  }
  void RunUntil(absl::Time until) {
    while (true) {
      absl::Time next = std::min(until, network_.NextEventTime());
      for (Node* node : {&*p_, &*d_}) {
        if (!node->polled) continue;
        next = std::min(next,
                        node->channel->has_events() ? network_.Now() : node->agent->NextDeadline());
      }
      network_.AdvanceTo(std::max(next, network_.Now()));
      for (Node* node : {&*p_, &*d_}) {
        if (node->polled) node->agent->Poll(&node->events);
      }
      if (next >= until) return;
    }
  }
  void Run(absl::Duration duration) { RunUntil(network_.Now() + duration); }

  ReceiveSpec ReceiveOf(int begin, int end, uint32_t attempt = 1, uint8_t request = 1) {
    ReceiveSpec spec;
    spec.request.bytes[0] = request;
    spec.attempt = Attempt(attempt);
    spec.fingerprint.push_back('f');
    spec.begin_token = begin;
    spec.end_token = end;
    spec.block_bytes = kBlockBytes;
    for (int i = begin / kBlockTokens; i * kBlockTokens < end; ++i)
      spec.blocks.push_back(d_->Block(i));
    return spec;
  }
  SendSpec SendOf(const ReceiveSpec& receive, TransferId transfer) {
    SendSpec spec;
    spec.transfer = transfer;
    spec.request = receive.request;
    spec.attempt = receive.attempt;
    spec.peer_address = d_->channel->LocalAddress();
    spec.peer_incarnation = kDecode;
    spec.fingerprint = receive.fingerprint;
    spec.begin_token = receive.begin_token;
    spec.end_token = receive.end_token;
    spec.block_bytes = kBlockBytes;
    return spec;
  }
  absl::Status Offer(TransferId transfer, int begin, int end) {
    std::vector<absl::Span<const uint8_t>> blocks;
    for (int i = begin / kBlockTokens; i * kBlockTokens < end; ++i) blocks.push_back(p_->Block(i));
    return p_->agent->Offer(transfer, begin, end, std::move(blocks));
  }
  // Reserves, binds and lets both sides get to know each other.
  TransferId Begin(const ReceiveSpec& receive) {
    TransferId transfer = *d_->agent->Reserve(receive);
    EXPECT_TRUE(p_->agent->StartSend(SendOf(receive, transfer)).ok());
    Run(absl::Milliseconds(20));
    return transfer;
  }
  bool SameBlocks(int begin, int end) {
    for (int i = begin / kBlockTokens; i * kBlockTokens < end; ++i) {
      if (!std::equal(p_->Block(i).begin(), p_->Block(i).end(), d_->Block(i).begin())) return false;
    }
    return true;
  }
  void ExpectIdle() {
    EXPECT_EQ(p_->agent->NextDeadline(), absl::InfiniteFuture());
    EXPECT_EQ(d_->agent->NextDeadline(), absl::InfiniteFuture());
    EXPECT_EQ(p_->agent->Stats().sends_in_flight, 0);
    EXPECT_EQ(d_->agent->Stats().receives_in_flight, 0);
  }

  TransferOptions options_;
  SimNetwork network_;
  std::optional<Node> p_, d_;
};

// A prompt waits and is computed between StartSend and the first offer.
TEST_F(TransferAgentTest, ASendIsTimedFromItsFirstOffer) {
  const TransferId transfer = Begin(ReceiveOf(0, 128));
  Run(absl::Seconds(10));
  ASSERT_TRUE(Offer(transfer, 0, 64).ok());
  Run(absl::Milliseconds(300));
  ASSERT_TRUE(Offer(transfer, 64, 128).ok());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, FirstToken{}).ok());
  Run(absl::Seconds(1));
  ASSERT_EQ(p_->All<SendEnded>().size(), 1u);
  const SendEnded ended = p_->All<SendEnded>()[0];
  ASSERT_TRUE(ended.status.ok()) << ended.status;
  EXPECT_GT(ended.duration, absl::Milliseconds(300));
  EXPECT_LT(ended.duration, absl::Seconds(1));
}

TEST_F(TransferAgentTest, MovesASequenceInChunks) {
  TransferId transfer = Begin(ReceiveOf(128, 1000));
  ASSERT_TRUE(Offer(transfer, 0, 512).ok());  // the cached prefix is ignored
  Run(absl::Milliseconds(50));
  ASSERT_TRUE(Offer(transfer, 512, 1000).ok());  // ends in a partial block
  FirstToken first{77, -0.5f, {{77, -0.5f}, {3, -2}}};
  ASSERT_TRUE(p_->agent->FinishSend(transfer, first).ok());
  Run(absl::Seconds(1));

  ASSERT_EQ(d_->All<Received>().size(), 1u);
  Received received = d_->All<Received>()[0];
  EXPECT_EQ(received.transfer, transfer);
  EXPECT_EQ(received.attempt, Attempt(1));
  EXPECT_EQ(received.first, first);
  EXPECT_EQ(received.bytes, 14 * kBlockBytes);
  EXPECT_GT(received.duration, absl::Milliseconds(50));
  EXPECT_LT(received.exposed, absl::Milliseconds(50));
  ASSERT_EQ(d_->All<ReceiveEnded>().size(), 1u);
  EXPECT_TRUE(d_->All<ReceiveEnded>()[0].status.ok());
  EXPECT_EQ(d_->All<ReceiveEnded>()[0].verified_tokens, 1000);
  ASSERT_EQ(p_->All<SendEnded>().size(), 1u);
  EXPECT_TRUE(p_->All<SendEnded>()[0].status.ok());
  EXPECT_EQ(p_->All<SendEnded>()[0].bytes, 14 * kBlockBytes);
  EXPECT_TRUE(SameBlocks(128, 1000));
  EXPECT_EQ(d_->Block(0)[0], 0);  // not ours to write
  EXPECT_EQ(p_->agent->Stats().resends, 0u);
  ExpectIdle();
}

TEST_F(TransferAgentTest, ChunksMayComeInAnyOrder) {
  TransferId transfer = Begin(ReceiveOf(0, 640));
  for (int begin : {512, 0, 256}) {
    ASSERT_TRUE(Offer(transfer, begin, std::min(640, begin + 256)).ok());
  }
  EXPECT_EQ(Offer(transfer, 0, 64).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(p_->agent->FinishSend(transfer, {}).ok());
  Run(absl::Seconds(1));
  EXPECT_EQ(d_->All<Received>().size(), 1u);
  EXPECT_TRUE(SameBlocks(0, 640));
}

TEST_F(TransferAgentTest, ChecksItsArguments) {
  ReceiveSpec good = ReceiveOf(64, 300);
  auto refuses = [&](auto change) {
    ReceiveSpec bad = good;
    change(&bad);
    return d_->agent->Reserve(bad).status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refuses([](ReceiveSpec* s) { s->begin_token = 65; }));
  EXPECT_TRUE(refuses([](ReceiveSpec* s) { s->end_token = 64; }));
  EXPECT_TRUE(refuses([](ReceiveSpec* s) { s->blocks.pop_back(); }));
  EXPECT_TRUE(refuses([](ReceiveSpec* s) { s->blocks[0].remove_suffix(1); }));
  EXPECT_TRUE(refuses([](ReceiveSpec* s) { s->block_tokens = 0; }));
  EXPECT_TRUE(refuses([](ReceiveSpec* s) { s->block_bytes = 0; }));

  TransferId transfer = Begin(good);
  SendSpec again = SendOf(good, transfer);
  EXPECT_EQ(p_->agent->StartSend(again).code(), absl::StatusCode::kAlreadyExists);
  again.transfer = TransferId();
  again.end_token = again.begin_token;
  EXPECT_EQ(p_->agent->StartSend(again).code(), absl::StatusCode::kInvalidArgument);
  again.end_token = 300;
  again.peer_incarnation = Incarnation(99);
  again.peer_address = "nowhere";
  EXPECT_EQ(p_->agent->StartSend(again).code(), absl::StatusCode::kInvalidArgument);

  EXPECT_EQ(Offer(TransferId(), 64, 128).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Offer(transfer, 64, 130).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Offer(transfer, 64, 320).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(p_->agent->Offer(transfer, 64, 128, {}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(Offer(transfer, 64, 128).ok());
  absl::Status early = p_->agent->FinishSend(transfer, {});
  EXPECT_EQ(early.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(early.message()), HasSubstr("1 of 4"));
}

TEST_F(TransferAgentTest, ReserveIsIdempotentAndNewerAttemptsWin) {
  TransferId first = *d_->agent->Reserve(ReceiveOf(0, 64, 2));
  EXPECT_EQ(*d_->agent->Reserve(ReceiveOf(0, 64, 2)), first);
  EXPECT_EQ(d_->agent->Reserve(ReceiveOf(0, 64, 1)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  TransferId second = *d_->agent->Reserve(ReceiveOf(0, 64, 3));
  EXPECT_NE(second, first);
  EXPECT_EQ(d_->agent->NextDeadline(), absl::InfinitePast());  // there is something to report
  Run(absl::Milliseconds(1));
  ASSERT_EQ(d_->All<ReceiveEnded>().size(), 1u);
  EXPECT_EQ(d_->All<ReceiveEnded>()[0].transfer, first);
  EXPECT_EQ(d_->All<ReceiveEnded>()[0].status.code(), absl::StatusCode::kAborted);
  d_->agent->CancelReceive(second, absl::CancelledError(""));
  EXPECT_EQ(d_->agent->Reserve(ReceiveOf(0, 64, 3)).status().code(),
            absl::StatusCode::kFailedPrecondition);  // this attempt is over
  EXPECT_TRUE(d_->agent->Reserve(ReceiveOf(0, 64, 4)).ok());
}

TEST_F(TransferAgentTest, RefusesMoreThanMaxTransfers) {
  options_.max_transfers = 2;
  Restart();
  TransferId id;
  for (uint8_t request = 1; request <= 2; ++request) {
    ReceiveSpec spec = ReceiveOf(0, 64, 1, request);
    id = *d_->agent->Reserve(spec);
    ASSERT_TRUE(p_->agent->StartSend(SendOf(spec, id)).ok());
  }
  ReceiveSpec third = ReceiveOf(0, 64, 1, 3);
  EXPECT_EQ(d_->agent->Reserve(third).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(p_->agent->StartSend(SendOf(third, TransferId())).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(TransferAgentTest, OtherFingerprintsEndBothSides) {
  ReceiveSpec receive = ReceiveOf(0, 64);
  TransferId transfer = *d_->agent->Reserve(receive);
  SendSpec send = SendOf(receive, transfer);
  send.fingerprint.push_back('!');
  ASSERT_TRUE(p_->agent->StartSend(send).ok());
  Run(absl::Seconds(1));
  ASSERT_EQ(p_->All<SendEnded>().size(), 1u);
  EXPECT_EQ(p_->All<SendEnded>()[0].status.code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(d_->All<ReceiveEnded>().size(), 1u);
  EXPECT_EQ(d_->All<ReceiveEnded>()[0].status.code(), absl::StatusCode::kFailedPrecondition);
  ExpectIdle();
}

TEST_F(TransferAgentTest, CancelByEitherSideEndsBothAndKeepsTheVerifiedPrefix) {
  for (bool by_sender : {true, false}) {
    Restart();
    TransferId transfer = Begin(ReceiveOf(0, 640));
    ASSERT_TRUE(Offer(transfer, 0, 256).ok());
    Run(absl::Milliseconds(100));
    if (by_sender) {
      p_->agent->CancelSend(transfer, absl::CancelledError("client left"));
    } else {
      d_->agent->CancelReceive(transfer, absl::CancelledError("client left"));
    }
    Run(absl::Milliseconds(100));
    ASSERT_EQ(p_->All<SendEnded>().size(), 1u);
    EXPECT_EQ(p_->All<SendEnded>()[0].status.code(), absl::StatusCode::kCancelled);
    ASSERT_EQ(d_->All<ReceiveEnded>().size(), 1u);
    EXPECT_EQ(d_->All<ReceiveEnded>()[0].status.code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(d_->All<ReceiveEnded>()[0].verified_tokens, 256);
    EXPECT_TRUE(SameBlocks(0, 256));
    EXPECT_TRUE(d_->All<Received>().empty());
    EXPECT_EQ(Offer(transfer, 256, 512).code(), absl::StatusCode::kNotFound);
    ExpectIdle();
  }
}

TEST_F(TransferAgentTest, ASilentPeerIsDeadAfterTheTimeout) {
  for (bool prefill_dies : {true, false}) {
    Restart();
    TransferId transfer = Begin(ReceiveOf(0, 640));
    ASSERT_TRUE(Offer(transfer, 0, 256).ok());
    Run(absl::Milliseconds(100));
    Node& dead = prefill_dies ? *p_ : *d_;
    Node& alive = prefill_dies ? *d_ : *p_;
    dead.polled = false;
    network_.SetPaused(dead.channel.get(), true);
    Run(TransferOptions().peer_timeout - absl::Milliseconds(300));
    EXPECT_TRUE(alive.events.empty());
    Run(absl::Milliseconds(500));
    ASSERT_EQ(alive.events.size(), 1u);
    absl::Status status =
        prefill_dies ? alive.All<ReceiveEnded>()[0].status : alive.All<SendEnded>()[0].status;
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(alive.agent->NextDeadline(), absl::InfiniteFuture());
    // It was only asleep: the zombie hears that it is too late.
    dead.polled = true;
    network_.SetPaused(dead.channel.get(), false);
    Run(absl::Seconds(12));
    ASSERT_EQ(dead.events.size(), 1u);
    ExpectIdle();
  }
}

TEST_F(TransferAgentTest, OurOwnPauseIsNotThePeersSilence) {
  TransferId transfer = Begin(ReceiveOf(0, 64));
  d_->polled = false;  // for less than P's patience, but the clock jumps for D
  Run(absl::Milliseconds(900));
  d_->polled = true;
  Run(absl::Milliseconds(300));
  ASSERT_TRUE(Offer(transfer, 0, 64).ok());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, {}).ok());
  Run(absl::Seconds(1));
  EXPECT_EQ(d_->All<Received>().size(), 1u);
}

TEST_F(TransferAgentTest, ALostCommitIsRepeatedFromTheTombstone) {
  TransferId transfer = Begin(ReceiveOf(0, 64));
  ASSERT_TRUE(Offer(transfer, 0, 64).ok());
  Run(absl::Milliseconds(20));
  network_.Cut(d_->channel.get(), p_->channel.get());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, {}).ok());
  Run(absl::Milliseconds(100));
  EXPECT_EQ(d_->All<ReceiveEnded>().size(), 1u);
  EXPECT_TRUE(p_->events.empty());
  network_.HealAllLinks();
  Run(absl::Milliseconds(400));
  ASSERT_EQ(p_->All<SendEnded>().size(), 1u);
  EXPECT_TRUE(p_->All<SendEnded>()[0].status.ok());
  EXPECT_GT(p_->agent->Stats().resends, 0u);
}

TEST_F(TransferAgentTest, LostMessagesAreRepeated) {
  SimFaults faults;
  faults.drop = 0.15;
  network_.set_faults(faults);
  TransferId transfer = Begin(ReceiveOf(0, 2000));
  ASSERT_TRUE(Offer(transfer, 0, 2000).ok());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, {}).ok());
  Run(absl::Seconds(10));
  EXPECT_EQ(d_->All<Received>().size(), 1u);
  EXPECT_TRUE(SameBlocks(0, 2000));
  EXPECT_GT(p_->agent->Stats().resends, 0u);
}

TEST_F(TransferAgentTest, DamageIsRepairedOnceAndNeverDelivered) {
  SimFaults always;
  always.damage_payload = 1;
  TransferId transfer = Begin(ReceiveOf(0, 64));
  network_.set_faults(always);
  ASSERT_TRUE(Offer(transfer, 0, 64).ok());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, {}).ok());
  while (d_->agent->Stats().checksum_failures == 0) Run(absl::Microseconds(100));
  network_.set_faults({});
  Run(absl::Seconds(1));
  EXPECT_EQ(d_->All<Received>().size(), 1u);
  EXPECT_TRUE(SameBlocks(0, 64));

  network_.set_faults(always);
  transfer = Begin(ReceiveOf(0, 64, 2));
  ASSERT_TRUE(Offer(transfer, 0, 64).ok());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, {}).ok());
  Run(absl::Seconds(1));
  EXPECT_EQ(d_->All<Received>().size(), 1u);
  EXPECT_EQ(d_->All<ReceiveEnded>().back().status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(p_->All<SendEnded>().back().status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(d_->agent->Stats().checksum_failures, 3u);
  ExpectIdle();
}

TEST_F(TransferAgentTest, ShortTransfersOvertakeLongOnes) {
  options_.window_bytes = 6 * kBlockBytes;
  Restart();
  TransferId slow = Begin(ReceiveOf(0, 40 * kBlockTokens));
  TransferId quick = Begin(ReceiveOf(41 * kBlockTokens, 42 * kBlockTokens, 1, 2));
  ASSERT_TRUE(Offer(slow, 0, 40 * kBlockTokens).ok());
  ASSERT_TRUE(p_->agent->FinishSend(slow, {}).ok());
  Run(absl::Microseconds(10));
  ASSERT_TRUE(Offer(quick, 41 * kBlockTokens, 42 * kBlockTokens).ok());
  ASSERT_TRUE(p_->agent->FinishSend(quick, {}).ok());
  Run(absl::Seconds(2));
  ASSERT_EQ(d_->All<Received>().size(), 2u);
  EXPECT_EQ(d_->All<Received>()[0].transfer, quick);
}

// What is checksummed long before it is sent is read from memory twice.
TEST_F(TransferAgentTest, TheChannelGetsAFewMessagesAtATime) {
  SimFaults rendezvous;
  rendezvous.eager_bytes = 0;
  network_.set_faults(rendezvous);
  options_.ahead_bytes = 7 * kBlockBytes;  // two messages of three blocks and a bit: three messages
  Restart();
  const TransferId transfer = Begin(ReceiveOf(0, 64 * kBlockTokens));
  ASSERT_TRUE(Offer(transfer, 0, 64 * kBlockTokens).ok());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, FirstToken()).ok());
  size_t most_blocks = 0;
  for (int i = 0; i < 5000 && d_->All<Received>().empty(); ++i) {
    Run(absl::Microseconds(200));
    most_blocks = std::max(most_blocks, p_->channel->PendingSources().size());
  }
  EXPECT_EQ(most_blocks, 9u);
  ASSERT_EQ(d_->All<Received>().size(), 1u);
  EXPECT_TRUE(SameBlocks(0, 64 * kBlockTokens));

  options_.ahead_bytes = 0;
  Restart();
  const TransferId narrow = Begin(ReceiveOf(0, 64 * kBlockTokens));
  ASSERT_TRUE(Offer(narrow, 0, 64 * kBlockTokens).ok());
  Run(absl::Microseconds(200));
  EXPECT_EQ(p_->channel->PendingSources().size(), 6u);
}

// However little of it the channel had taken by then.
TEST_F(TransferAgentTest, ExposedIsAllThatComesAfterTheEndOfThePrompt) {
  SimFaults rendezvous;
  rendezvous.eager_bytes = 0;
  network_.set_faults(rendezvous);
  options_.ahead_bytes = 0;
  Restart();
  const TransferId transfer = Begin(ReceiveOf(0, 64 * kBlockTokens));
  ASSERT_TRUE(Offer(transfer, 0, 64 * kBlockTokens).ok());
  const absl::Time finished_at = network_.Now();
  ASSERT_TRUE(p_->agent->FinishSend(transfer, FirstToken()).ok());
  while (d_->All<Received>().empty() && network_.Now() < finished_at + absl::Seconds(5)) {
    Run(absl::Microseconds(100));
  }
  ASSERT_EQ(d_->All<Received>().size(), 1u);
  EXPECT_GT(d_->All<Received>()[0].exposed, 0.8 * (network_.Now() - finished_at));
}

// Whoever can reach the channel can send it anything. Nothing but a correct message of the bound
// life counts.
TEST_F(TransferAgentTest, HostileMessagesAreCountedAndHarmless) {
  ReceiveSpec receive = ReceiveOf(0, 128);
  TransferId transfer = Begin(receive);
  std::unique_ptr<SimChannel> stranger = network_.NewChannel("x");
  PeerId to_d = *stranger->Connect(d_->channel->LocalAddress());
  const std::vector<uint8_t> payload(kBlockBytes, 0xbb);
  uint64_t sent = 0;
  auto send = [&](std::string header, bool with_payload) {
    std::vector<absl::Span<const uint8_t>> spans;
    if (with_payload) spans.push_back(absl::MakeConstSpan(payload));
    ASSERT_TRUE(stranger->Send(to_d, std::move(header), spans, OperationId(++sent)).ok());
  };
  handoff::Offer offer{0, 0, 64, kBlockBytes, 1};
  handoff::Bind bind;
  send("", false);
  send("garbage", true);
  send(handoff::Encode({kPrefill, Incarnation(5), transfer, offer}), true);  // earlier life of D
  send(handoff::Encode({Incarnation(66), kDecode, transfer, offer}), true);  // not who bound
  send(handoff::Encode({kPrefill, kDecode, TransferId(), offer}), true);     // no such transfer
  send(handoff::Encode({kPrefill, kDecode, transfer, handoff::Final{}}),
       true);  // payload where none is
  send(handoff::Encode({Incarnation(66), kDecode, transfer, bind}), false);
  send(handoff::Encode(
           {Incarnation(66), kDecode, transfer, handoff::Cancel{handoff::Side::kReceiver}}),
       false);
  Run(absl::Milliseconds(100));
  EXPECT_EQ(d_->agent->Stats().messages_refused, sent);
  EXPECT_TRUE(d_->events.empty());
  EXPECT_EQ(std::count(d_->memory.begin(), d_->memory.end(), 0xbb), 0);

  ASSERT_TRUE(Offer(transfer, 0, 128).ok());
  ASSERT_TRUE(p_->agent->FinishSend(transfer, {}).ok());
  Run(absl::Seconds(1));
  EXPECT_EQ(d_->All<Received>().size(), 1u);
}

TEST_F(TransferAgentTest, IdlePeersMakeRoomForNewOnes) {
  options_.max_peers = 1;
  Restart();
  ReceiveSpec receive = ReceiveOf(0, 64);
  TransferId transfer = Begin(receive);
  SendSpec other = SendOf(receive, TransferId());
  other.peer_incarnation = Incarnation(3);
  EXPECT_EQ(p_->agent->StartSend(other).code(), absl::StatusCode::kResourceExhausted);
  p_->agent->CancelSend(transfer, absl::CancelledError(""));
  Run(absl::Seconds(1));
  EXPECT_TRUE(p_->agent->StartSend(other).ok());
}

}  // namespace
}  // namespace sluice
