// Prefix fetch: the two machines by themselves, then two agents over a network without faults, or
// with exactly the one that a test is about. The asker is the prefill worker, as in a handoff.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/sim_channel.h"
#include "kvtransfer/handoff/fetch.h"

namespace sluice {
namespace {

using handoff::FetchGate;
using ::testing::HasSubstr;

constexpr int kBlockTokens = 64;
constexpr size_t kBlockBytes = 3000;
constexpr Incarnation kPrefill{1};
constexpr Incarnation kDecode{2};

// --- the gate ---

handoff::Bind Reservation() {
  handoff::Bind bind;
  bind.begin_token = 640;  // the cached prefix
  bind.end_token = 1000;
  bind.block_tokens = kBlockTokens;
  bind.block_bytes = kBlockBytes;
  bind.fingerprint = "model";
  return bind;
}

handoff::Fetch FetchOf(uint32_t begin, uint32_t end, uint8_t into = 1) {
  handoff::Fetch fetch;
  fetch.into.bytes[0] = into;
  fetch.begin_token = begin;
  fetch.end_token = end;
  fetch.block_tokens = kBlockTokens;
  fetch.block_bytes = kBlockBytes;
  fetch.fingerprint = "model";
  return fetch;
}

TEST(FetchGate, ServesAnyPartOfTheCachedPrefix) {
  for (const auto& [begin, end] : {std::pair(0, 640), std::pair(64, 640), std::pair(576, 640)}) {
    FetchGate gate;
    absl::Status why;
    EXPECT_EQ(gate.Judge(Reservation(), std::nullopt, kPrefill, FetchOf(begin, end), &why),
              FetchGate::Verdict::kServe);
  }
}

TEST(FetchGate, RefusesWhatIsNotInThePrefix) {
  // Behind it, empty, reversed, not whole blocks.
  const std::pair<uint32_t, uint32_t> ranges[] = {{0, 704}, {640, 704}, {64, 64},         {128, 64},
                                                  {1, 64},  {0, 63},    {0xffffffc0u, 64}};
  for (const auto& [begin, end] : ranges) {
    FetchGate gate;
    absl::Status why;
    EXPECT_EQ(gate.Judge(Reservation(), std::nullopt, kPrefill, FetchOf(begin, end), &why),
              FetchGate::Verdict::kRefuse);
    EXPECT_TRUE(absl::IsOutOfRange(why)) << why;
  }
}

TEST(FetchGate, RefusesOtherModelsAndGeometries) {
  handoff::Fetch other_model = FetchOf(0, 64), other_tokens = FetchOf(0, 64),
                 other_bytes = FetchOf(0, 64);
  other_model.fingerprint = "other";
  other_tokens.block_tokens = 32;
  other_bytes.block_bytes = 1;
  for (const handoff::Fetch& fetch : {other_model, other_tokens, other_bytes}) {
    FetchGate gate;
    absl::Status why;
    EXPECT_EQ(gate.Judge(Reservation(), std::nullopt, kPrefill, fetch, &why),
              FetchGate::Verdict::kRefuse);
    EXPECT_TRUE(absl::IsFailedPrecondition(why)) << why;
  }
}

TEST(FetchGate, OnlyWhoFillsTheReservationMayAsk) {
  FetchGate gate;
  absl::Status why;
  EXPECT_EQ(gate.Judge(Reservation(), Incarnation(9), kPrefill, FetchOf(0, 64), &why),
            FetchGate::Verdict::kRefuse);
  EXPECT_EQ(gate.Judge(Reservation(), kPrefill, kPrefill, FetchOf(0, 64), &why),
            FetchGate::Verdict::kServe);
}

TEST(FetchGate, ServesOnce) {
  FetchGate gate;
  absl::Status why;
  EXPECT_EQ(gate.Judge(Reservation(), kPrefill, kPrefill, FetchOf(0, 64, 1), &why),
            FetchGate::Verdict::kServe);
  EXPECT_EQ(gate.Judge(Reservation(), kPrefill, kPrefill, FetchOf(0, 64, 1), &why),
            FetchGate::Verdict::kRepeat);
  EXPECT_EQ(gate.Judge(Reservation(), kPrefill, kPrefill, FetchOf(0, 64, 2), &why),
            FetchGate::Verdict::kRefuse);
}

TEST(FetchRequest, IsRepeatedUntilAnswered) {
  const absl::Time start = absl::UnixEpoch();
  handoff::FetchRequest request(kDecode, TransferId(), FetchOf(0, 64), absl::Milliseconds(300),
                                start);
  EXPECT_TRUE(request.TakeDue(start));
  EXPECT_FALSE(request.TakeDue(start + absl::Milliseconds(299)));
  EXPECT_EQ(request.NextDeadline(), start + absl::Milliseconds(300));
  EXPECT_TRUE(request.TakeDue(start + absl::Milliseconds(300)));
  request.Answered();
  EXPECT_EQ(request.NextDeadline(), absl::InfiniteFuture());
  EXPECT_FALSE(request.TakeDue(start + absl::Hours(1)));
}

// --- two agents ---

struct Node {
  Node(SimNetwork* network, const std::string& name, Incarnation incarnation)
      : channel(network->NewChannel(name)),
        agent(TransferAgent::Create(TransferOptions(), incarnation, channel.get(), network)),
        memory(16 * kBlockBytes) {}
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
  std::vector<TransferEvent> events;
  std::unique_ptr<TransferAgent> agent;
  std::vector<uint8_t> memory;
};

// The decode worker has tokens [0, 640) cached in its blocks 0..9, and reserves [640, 1000).
class PrefixFetch : public ::testing::Test {
 protected:
  PrefixFetch() : network_(1), p_(&network_, "p", kPrefill), d_(&network_, "d", kDecode) {
    for (size_t i = 0; i < d_.memory.size(); ++i) {
      d_.memory[i] = static_cast<uint8_t>(i * 2654435761u >> 16);
    }
    grant_ = *d_.agent->Reserve(SpecOf(&d_, 640, 1000));
  }
  static ReceiveSpec SpecOf(Node* node, int begin, int end) {
    ReceiveSpec spec;
    spec.request.bytes[0] = 1;
    spec.attempt = Attempt(2);
    spec.fingerprint.push_back('f');
    spec.begin_token = begin;
    spec.end_token = end;
    spec.block_bytes = kBlockBytes;
    for (int i = begin / kBlockTokens; i * kBlockTokens < end; ++i) {
      spec.blocks.push_back(node->Block(i));
    }
    return spec;
  }
  TransferId Fetch(int begin, int end) {
    FetchSpec spec;
    spec.into = SpecOf(&p_, begin, end);
    spec.grant = grant_;
    spec.peer_address = d_.channel->LocalAddress();
    spec.peer_incarnation = kDecode;
    absl::StatusOr<TransferId> into = p_.agent->Fetch(spec);
    EXPECT_TRUE(into.ok()) << into.status();
    return into.value_or(TransferId());
  }
  void Run(absl::Duration duration) {
    const absl::Time until = network_.Now() + duration;
    while (true) {
      absl::Time next = std::min(until, network_.NextEventTime());
      for (Node* node : {&p_, &d_}) {
        next = std::min(next,
                        node->channel->has_events() ? network_.Now() : node->agent->NextDeadline());
      }
      network_.AdvanceTo(std::max(next, network_.Now()));
      for (Node* node : {&p_, &d_}) node->agent->Poll(&node->events);
      if (next >= until) return;
    }
  }
  // What the decode worker's owner does when asked.
  void Lend(const SendSpec& send, int end_token) {
    ASSERT_TRUE(d_.agent->StartSend(send).ok());
    std::vector<absl::Span<const uint8_t>> blocks;
    for (int i = send.begin_token; i < end_token; i += kBlockTokens) {
      blocks.push_back(d_.Block(i / kBlockTokens));
    }
    ASSERT_TRUE(
        d_.agent->Offer(send.transfer, send.begin_token, end_token, std::move(blocks)).ok());
    if (end_token == send.end_token) {
      ASSERT_TRUE(d_.agent->FinishSend(send.transfer, {}).ok());
    }
  }
  bool SameBlocks(int begin, int end) {
    for (int i = begin / kBlockTokens; i * kBlockTokens < end; ++i) {
      if (!std::equal(p_.Block(i).begin(), p_.Block(i).end(), d_.Block(i).begin())) return false;
    }
    return true;
  }
  ReceiveEnded OnlyEnd() {
    const std::vector<ReceiveEnded> ended = p_.All<ReceiveEnded>();
    EXPECT_EQ(ended.size(), 1u);
    return ended.empty() ? ReceiveEnded() : ended.front();
  }

  SimNetwork network_;
  Node p_, d_;
  TransferId grant_;
};

TEST_F(PrefixFetch, BringsTheMissingBlocks) {
  const TransferId into = Fetch(128, 640);
  Run(absl::Milliseconds(50));
  ASSERT_EQ(d_.All<FetchRequested>().size(), 1u);
  const FetchRequested asked = d_.All<FetchRequested>()[0];
  EXPECT_EQ(asked.grant, grant_);
  EXPECT_EQ(asked.send.transfer, into);
  EXPECT_EQ(asked.send.begin_token, 128);
  EXPECT_EQ(asked.send.end_token, 640);
  Lend(asked.send, 640);
  Run(absl::Milliseconds(500));
  ASSERT_EQ(p_.All<Received>().size(), 1u);
  EXPECT_TRUE(p_.All<Received>()[0].fetched);
  EXPECT_TRUE(OnlyEnd().status.ok());
  EXPECT_EQ(OnlyEnd().verified_tokens, 640);
  EXPECT_TRUE(SameBlocks(128, 640));
  ASSERT_EQ(d_.All<SendEnded>().size(), 1u);  // the prefix may be unpinned
  EXPECT_TRUE(d_.All<SendEnded>()[0].status.ok());
  EXPECT_EQ(d_.agent->Stats().receives_in_flight, 1);  // the reservation goes on
}

TEST_F(PrefixFetch, IsAskedAgainUntilAnsweredButServedOnce) {
  SimFaults faults;
  faults.duplicate = 1;
  network_.set_faults(faults);
  Fetch(0, 640);
  Run(absl::Milliseconds(900));  // the owner takes its time
  EXPECT_EQ(d_.All<FetchRequested>().size(), 1u);
  Lend(d_.All<FetchRequested>()[0].send, 640);
  Run(absl::Milliseconds(900));
  EXPECT_TRUE(OnlyEnd().status.ok());
}

TEST_F(PrefixFetch, ALostFetchIsRepeated) {
  network_.Cut(p_.channel.get(), d_.channel.get());
  Fetch(0, 640);
  Run(absl::Milliseconds(100));
  network_.HealAllLinks();
  Run(absl::Milliseconds(400));
  EXPECT_EQ(d_.All<FetchRequested>().size(), 1u);
}

TEST_F(PrefixFetch, RefusalsAreHeardAtOnce) {
  Fetch(0, 704);  // more than the prefix
  Run(absl::Milliseconds(50));
  EXPECT_TRUE(d_.All<FetchRequested>().empty());
  EXPECT_TRUE(absl::IsOutOfRange(OnlyEnd().status)) << OnlyEnd().status;
  EXPECT_EQ(OnlyEnd().verified_tokens, 0);
}

TEST_F(PrefixFetch, AnEndedReservationServesNobody) {
  // The tombstone still knows the grant, so that the refusal finds its way back.
  d_.agent->CancelReceive(grant_, absl::CancelledError("test"));
  Fetch(0, 640);
  Run(absl::Milliseconds(50));
  EXPECT_TRUE(d_.All<FetchRequested>().empty());
  EXPECT_TRUE(absl::IsAborted(OnlyEnd().status)) << OnlyEnd().status;
}

TEST_F(PrefixFetch, AStrangersGrantEndsByPatience) {
  grant_.bytes[3] ^= 1;
  Fetch(0, 640);
  Run(TransferOptions().fetch_patience + absl::Milliseconds(10));
  EXPECT_TRUE(d_.All<FetchRequested>().empty());
  EXPECT_FALSE(OnlyEnd().status.ok());
  EXPECT_EQ(OnlyEnd().verified_tokens, 0);
}

TEST_F(PrefixFetch, NoAnswerEndsByPatience) {
  Fetch(0, 640);
  Run(TransferOptions().fetch_patience + absl::Milliseconds(10));
  ASSERT_EQ(d_.All<FetchRequested>().size(), 1u);  // which the owner sleeps over
  EXPECT_TRUE(absl::IsDeadlineExceeded(OnlyEnd().status));
  EXPECT_EQ(p_.agent->Stats().receives_in_flight, 0);
}

TEST_F(PrefixFetch, WhatArrivedBeforeTheEndCounts) {
  Fetch(0, 640);
  Run(absl::Milliseconds(50));
  const SendSpec send = d_.All<FetchRequested>()[0].send;
  Lend(send, 320);
  Run(absl::Milliseconds(200));
  d_.agent->CancelSend(send.transfer, absl::UnavailableError("the decode worker needs its blocks"));
  Run(absl::Milliseconds(200));
  EXPECT_THAT(std::string(OnlyEnd().status.message()), HasSubstr("needs its blocks"));
  EXPECT_EQ(OnlyEnd().verified_tokens, 320);
  EXPECT_TRUE(SameBlocks(0, 320));
}

TEST_F(PrefixFetch, OnlyWhoWasAskedMayAnswer) {
  const TransferId into = Fetch(0, 640);
  Node stranger(&network_, "stranger", Incarnation(7));
  SendSpec send;
  send.transfer = into;
  send.request.bytes[0] = 1;
  send.attempt = Attempt(2);
  send.peer_address = p_.channel->LocalAddress();
  send.peer_incarnation = kPrefill;
  send.fingerprint = "f";
  send.end_token = 640;
  send.block_bytes = kBlockBytes;
  ASSERT_TRUE(stranger.agent->StartSend(send).ok());
  Run(absl::Milliseconds(50));
  stranger.agent->Poll(&stranger.events);
  ASSERT_EQ(stranger.All<SendEnded>().size(), 1u);
  EXPECT_TRUE(absl::IsAborted(stranger.All<SendEnded>()[0].status));
  Lend(d_.All<FetchRequested>()[0].send, 640);
  Run(absl::Milliseconds(500));
  EXPECT_TRUE(OnlyEnd().status.ok());
}

TEST_F(PrefixFetch, HalfBlocksAreNotFetched) {
  FetchSpec spec;
  spec.into = SpecOf(&p_, 0, 100);
  EXPECT_TRUE(absl::IsInvalidArgument(p_.agent->Fetch(spec).status()));
}

}  // namespace
}  // namespace sluice
