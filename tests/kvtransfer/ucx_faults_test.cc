// Peers that are killed or stopped in the middle of their transfers, at the worst moments that UCX
// has over shared memory.
#include <signal.h>
#include <sys/resource.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kvtransfer/ucx_harness.h"

namespace sluice {
namespace {

constexpr size_t kPayloadBytes = 4 << 20;  // far more than the queue between two processes holds

absl::Duration CpuTime() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

// Whether a new process can talk to the channel, in both directions and with payload.
bool CanTalk(Node* node, const std::string& tls) {
  PeerProcess fresh(tls, node->channel->LocalAddress());
  absl::StatusOr<PeerId> to_fresh = node->channel->Connect(fresh.address());
  if (!to_fresh.ok()) return false;
  const std::vector<uint8_t> source(kPayloadBytes, 3);
  const OperationId id(1000000);
  node->messages.clear();
  node->sent.erase(id);
  if (!node->channel->Send(*to_fresh, "take", {absl::MakeConstSpan(source)}, id).ok()) return false;
  const std::string answer = absl::StrCat("took ", uint64_t{3} * kPayloadBytes);
  const bool talked = node->WaitUntil([&] {
    for (const ChannelEvent& message : node->messages) {
      if (message.header == answer) return node->sent.contains(id);
    }
    return false;
  });
  node->channel->Disconnect(*to_fresh);
  return talked;
}

class UcxFaultsTest : public ::testing::TestWithParam<std::string> {
 protected:
  UcxOptions Options() const { return OptionsFor(GetParam()); }
};

TEST_P(UcxFaultsTest, SendsEndWhenThePeerIsKilledOrStoppedAmidThem) {
  const std::vector<uint8_t> source = Pattern(kPayloadBytes, 9);
  constexpr uint64_t kCount = 8;
  for (int round = 0; round < 6; ++round) {
    Node a(Options());
    PeerProcess peer(GetParam(), a.channel->LocalAddress());
    PeerId to_peer = *a.channel->Connect(peer.address());
    for (uint64_t i = 1; i <= kCount; ++i) {
      ASSERT_TRUE(
          a.channel->Send(to_peer, "take", {absl::MakeConstSpan(source)}, OperationId(i)).ok());
    }
    ASSERT_TRUE(a.WaitUntil([&] { return !a.sent.empty(); }));
    peer.Signal(round % 2 == 0 ? SIGKILL : SIGSTOP);
    a.PollFor(absl::Milliseconds(100));  // into its queue, as long as there is room
    a.channel->Disconnect(to_peer);
    EXPECT_TRUE(a.WaitUntil([&] { return a.sent.size() == kCount; })) << a.sent.size();
    // What may hang in UCX keeps nobody busy.
    const absl::Duration before = CpuTime();
    a.PollFor(absl::Milliseconds(500));
    EXPECT_LT(CpuTime() - before, absl::Milliseconds(250));
    EXPECT_TRUE(CanTalk(&a, GetParam()));
  }
}

TEST_P(UcxFaultsTest, AReceiveEndsAlthoughThePeerDiedWithAFullQueue) {
  Node a(Options());
  PeerProcess peer(GetParam(), a.channel->LocalAddress());
  PeerId to_peer = *a.channel->Connect(peer.address());
  ASSERT_TRUE(a.channel->Send(to_peer, "send-stop 4000000", {}, OperationId(1)).ok());
  ASSERT_TRUE(a.WaitForMessages(1));
  peer.WaitUntilStopped();
  std::vector<uint8_t> destination(4000000);
  ASSERT_TRUE(
      a.channel->Receive(a.messages[0].payload, {absl::MakeSpan(destination)}, OperationId(2))
          .ok());
  for (uint64_t i = 0; i < 500; ++i) {
    ASSERT_TRUE(a.channel->Send(to_peer, "hold", {}, OperationId(10 + i)).ok());
  }
  a.PollFor(absl::Milliseconds(50));
  a.channel->Disconnect(to_peer);
  ASSERT_TRUE(a.WaitUntil([&] { return a.received.contains(OperationId(2)); }));
  EXPECT_FALSE(a.received[OperationId(2)].ok());
  // The memory has a new owner, and the peer wakes up.
  std::fill(destination.begin(), destination.end(), 0xee);
  peer.Signal(SIGCONT);
  a.PollFor(absl::Milliseconds(300));
  EXPECT_TRUE(AllAre(destination, 0xee));
  EXPECT_TRUE(CanTalk(&a, GetParam()));
}

TEST_P(UcxFaultsTest, ConnectsToTheDeadWithPauses) {
  Node a(Options());
  std::string address;
  {
    PeerProcess peer(GetParam(), a.channel->LocalAddress());
    address = peer.address();
  }
  int tries = 0;
  const absl::Time end = MonotonicNow() + absl::Seconds(1);
  while (MonotonicNow() < end) {
    absl::StatusOr<PeerId> peer = a.channel->Connect(address);
    if (peer.ok()) {
      ++tries;
      a.channel->Send(*peer, "hello", {}, OperationId(1)).IgnoreError();
      a.WaitUntil([&] { return !a.failed.empty(); }, nullptr, absl::Milliseconds(200));
      a.channel->Disconnect(*peer);
      a.failed.clear();
    }
    a.PollFor(absl::Milliseconds(1));
  }
  EXPECT_LE(tries, 6);
}

// As for a process that was stopped: when it goes on, messages of peers that are no more wait for
// it.
TEST_P(UcxFaultsTest, WhoGreetedAndDiedBeforeItWasHeardDoesNoHarm) {
  Node a(Options());
  for (int round = 0; round < 5; ++round) {
    {
      PeerProcess living(GetParam(), a.channel->LocalAddress(), /*greets=*/true);
      PeerProcess dead(GetParam(), a.channel->LocalAddress(), /*greets=*/true);
      dead.Kill();
      a.PollFor(absl::Milliseconds(50));
    }
    a.PollFor(absl::Milliseconds(50));
  }
  EXPECT_TRUE(CanTalk(&a, GetParam()));
}

// The same, when we talk to it before we hear that it is gone.
TEST_P(UcxFaultsTest, WhoGreetedAndDiedIsTalkedTo) {
  Node a(Options());
  for (int round = 0; round < 5; ++round) {
    PeerProcess dead(GetParam(), a.channel->LocalAddress(), /*greets=*/true);
    absl::StatusOr<PeerId> to_dead = a.channel->Connect(dead.address());
    ASSERT_TRUE(to_dead.ok()) << to_dead.status();
    dead.Kill();
    const std::vector<uint8_t> source(kPayloadBytes, 3);
    a.channel->Send(*to_dead, "take", {absl::MakeConstSpan(source)}, OperationId(1)).IgnoreError();
    a.PollFor(absl::Milliseconds(50));
    a.channel->Disconnect(*to_dead);
    a.PollFor(absl::Milliseconds(50));
  }
  EXPECT_TRUE(CanTalk(&a, GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Transports, UcxFaultsTest, ::testing::Values("tcp", "shm"),
                         [](const auto& info) { return info.param; });

// Over shared memory all senders share one queue to a receiver: who dies while writing into it
// would make the receiver deaf to everybody.
TEST(UcxSharedQueue, ASenderThatDiesWritingMakesNobodyDeaf) {
  Node a(OptionsFor("shm"));
  const std::string address = a.channel->LocalAddress();
  PeerProcess friendly("shm", address);
  PeerId to_friend = *a.channel->Connect(friendly.address());
  PeerProcess doomed("shm", address);
  PeerId to_doomed = *a.channel->Connect(doomed.address());
  ASSERT_TRUE(a.channel->Send(to_friend, "drop", {}, OperationId(1)).ok());
  ASSERT_TRUE(a.WaitForMessages(1));
  ASSERT_TRUE(a.channel->Send(to_doomed, "die-sending 20000", {}, OperationId(2)).ok());
  // All endpoints end, and the channel has a new address.
  ASSERT_TRUE(a.WaitUntil([&] { return a.failed.size() == 2; }));
  EXPECT_NE(a.channel->LocalAddress(), address);
  EXPECT_FALSE(a.channel->Send(to_friend, "drop", {}, OperationId(3)).ok());
  a.channel->Disconnect(to_friend);
  a.channel->Disconnect(to_doomed);
  EXPECT_TRUE(CanTalk(&a, "shm"));
}

// UCX ends the process when its worker is destroyed while requests hang on an open endpoint.
TEST(UcxSharedQueue, TheChannelIsRenewedWhilePayloadsAreUnderWayToTheLiving) {
  Node a(OptionsFor("shm"));
  const std::string address = a.channel->LocalAddress();
  PeerProcess slow("shm", address);
  PeerId to_slow = *a.channel->Connect(slow.address());
  PeerProcess doomed("shm", address);
  PeerId to_doomed = *a.channel->Connect(doomed.address());
  ASSERT_TRUE(a.channel->Send(to_slow, "send-stop 4000000", {}, OperationId(1)).ok());
  ASSERT_TRUE(a.WaitForMessages(1));
  slow.WaitUntilStopped();
  std::vector<uint8_t> destination(4000000);
  ASSERT_TRUE(
      a.channel->Receive(a.messages[0].payload, {absl::MakeSpan(destination)}, OperationId(2))
          .ok());
  const std::vector<uint8_t> source(kPayloadBytes, 3);
  ASSERT_TRUE(a.channel->Send(to_slow, "take", {absl::MakeConstSpan(source)}, OperationId(3)).ok());
  a.PollFor(absl::Milliseconds(20));
  ASSERT_TRUE(a.channel->Send(to_doomed, "die-sending 20000", {}, OperationId(4)).ok());
  ASSERT_TRUE(a.WaitUntil([&] { return a.channel->LocalAddress() != address; }));
  ASSERT_TRUE(a.WaitUntil([&] { return a.sent.contains(OperationId(3)); }));
  EXPECT_FALSE(a.sent[OperationId(3)].ok());
  ASSERT_TRUE(a.WaitUntil([&] { return a.received.contains(OperationId(2)); }));
  EXPECT_FALSE(a.received[OperationId(2)].ok());
  slow.Signal(SIGCONT);
  a.channel->Disconnect(to_slow);
  a.channel->Disconnect(to_doomed);
  EXPECT_TRUE(CanTalk(&a, "shm"));
}

// Whether a channel got over a peer that stopped for 50 ms while it wrote.
bool WaitsForAShortStop() {
  Node a(OptionsFor("shm"));
  const std::string address = a.channel->LocalAddress();
  PeerProcess peer("shm", address);
  PeerId to_peer = *a.channel->Connect(peer.address());
  EXPECT_TRUE(a.channel->Send(to_peer, "stop-sending 20000", {}, OperationId(1)).ok());
  EXPECT_TRUE(a.WaitUntil([&] { return peer.HasStopped(); }));
  a.PollFor(absl::Milliseconds(50));
  EXPECT_TRUE(a.messages.empty());
  peer.Signal(SIGCONT);
  if (!a.WaitUntil([&] { return !a.messages.empty() || !a.failed.empty(); })) return false;
  return a.failed.empty() && a.channel->LocalAddress() == address;
}

TEST(UcxSharedQueue, AShortStopWhileWritingIsWaitedFor) {
  // A machine that stalls may make any stop a long one.
  bool waited = false;
  for (int tries = 0; tries < 3 && !waited; ++tries) waited = WaitsForAShortStop();
  EXPECT_TRUE(waited);
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  int exit_code = 0;
  if (sluice::RunAsPeer(argc, argv, &exit_code)) return exit_code;
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
