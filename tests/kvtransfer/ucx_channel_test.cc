// The UCX channel over shared memory and over TCP on the loopback: two channels in one process, and
// a peer in another process that can be stopped and killed.
#include "kvtransfer/channel/ucx_channel.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/channel/ucx_address.h"
#include "kvtransfer/channel/ucx_lanes.h"
#include "tests/kvtransfer/ucx_harness.h"

namespace sluice {
namespace {

class UcxChannelTest : public ::testing::TestWithParam<std::string> {
 protected:
  UcxOptions Options() const { return OptionsFor(GetParam()); }
  std::string Expected() const { return GetParam() == "tcp" ? "tcp" : "shm"; }
};

TEST_P(UcxChannelTest, MovesEverySizeUnchanged) {
  Node a(Options()), b(Options());
  PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
  PeerId to_a = *b.channel->Connect(a.channel->LocalAddress());
  EXPECT_EQ(*a.channel->Connect(b.channel->LocalAddress()), to_b);
  uint64_t operation = 0;
  for (size_t size_bytes : {size_t{1}, size_t{100}, size_t{8000}, size_t{32 << 10},
                            size_t{(32 << 10) + 1}, size_t{1 << 20}, size_t{8 << 20}}) {
    std::vector<uint8_t> source = Pattern(size_bytes, static_cast<uint32_t>(size_bytes));
    std::vector<uint8_t> destination(size_bytes);
    OperationId id(++operation);
    b.messages.clear();
    ASSERT_TRUE(a.channel->Send(to_b, "header", {absl::MakeConstSpan(source)}, id).ok());
    ASSERT_TRUE(b.WaitForMessages(1, &a)) << size_bytes;
    ChannelEvent& message = b.messages[0];
    EXPECT_EQ(message.header, "header");
    EXPECT_EQ(message.peer, to_a);
    ASSERT_EQ(message.payload_bytes, size_bytes);
    ASSERT_TRUE(b.channel->Receive(message.payload, {absl::MakeSpan(destination)}, id).ok());
    ASSERT_TRUE(b.WaitUntil([&] { return b.received.contains(id) && a.sent.contains(id); }, &a));
    EXPECT_TRUE(b.received[id].ok()) << b.received[id];
    EXPECT_TRUE(a.sent[id].ok()) << a.sent[id];
    EXPECT_EQ(source, destination) << size_bytes;
  }
  ASSERT_EQ(a.channel->Transports().size(), 1u);
  PeerTransport transport = a.channel->Transports()[0];
  EXPECT_EQ(transport.transport, Expected()) << transport.lanes;
  EXPECT_GT(transport.bytes_sent, uint64_t{9 << 20});
  EXPECT_GT(transport.busy_sending, absl::ZeroDuration());
}

TEST_P(UcxChannelTest, GathersAndScattersDifferently) {
  Node a(Options()), b(Options());
  PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
  ASSERT_TRUE(b.channel->Connect(a.channel->LocalAddress()).ok());
  uint64_t operation = 0;
  for (size_t size_bytes : {size_t{3000}, size_t{1} << 20, size_t{3} << 20}) {
    std::vector<uint8_t> source = Pattern(size_bytes, 5);
    std::vector<uint8_t> destination(size_bytes);
    std::vector<absl::Span<const uint8_t>> gather;
    std::vector<absl::Span<uint8_t>> scatter;
    for (size_t at = 0, step = 517; at < size_bytes; at += step, step = step * 3 % 70001 + 1) {
      gather.push_back(absl::MakeConstSpan(source).subspan(at, step));
    }
    for (size_t at = 0, step = 40009; at < size_bytes; at += step, step = step * 5 % 90001 + 1) {
      scatter.push_back(absl::MakeSpan(destination).subspan(at, step));
    }
    OperationId id(++operation);
    b.messages.clear();
    ASSERT_TRUE(a.channel->Send(to_b, "h", gather, id).ok());
    ASSERT_TRUE(b.WaitForMessages(1, &a));
    ASSERT_TRUE(b.channel->Receive(b.messages[0].payload, scatter, id).ok());
    ASSERT_TRUE(b.WaitUntil([&] { return b.received.contains(id) && a.sent.contains(id); }, &a));
    EXPECT_TRUE(b.received[id].ok()) << b.received[id];
    EXPECT_EQ(source, destination);
  }
}

TEST_P(UcxChannelTest, EveryOperationOfManyEnds) {
  Node a(Options()), b(Options());
  PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
  ASSERT_TRUE(b.channel->Connect(a.channel->LocalAddress()).ok());
  constexpr uint64_t kCount = 300;
  std::vector<std::vector<uint8_t>> sources, destinations(kCount);
  for (uint64_t i = 0; i < kCount; ++i) {
    sources.push_back(Pattern(i % 3 == 0   ? 0
                              : i % 3 == 1 ? 500 + i
                                           : 100000 + i,
                              static_cast<uint32_t>(i)));
    ASSERT_TRUE(
        a.channel
            ->Send(to_b, absl::StrCat(i), {absl::MakeConstSpan(sources.back())}, OperationId(i + 1))
            .ok());
  }
  size_t handled = 0, dropped = 0;
  ASSERT_TRUE(b.WaitUntil(
      [&] {
        for (; handled < b.messages.size(); ++handled) {
          ChannelEvent& message = b.messages[handled];
          uint64_t i = std::stoull(message.header);
          if (message.payload_bytes == 0) continue;
          if (i % 5 == 0) {
            b.channel->Drop(message.payload);
            ++dropped;
            continue;
          }
          destinations[i].resize(message.payload_bytes);
          (void)b.channel->Receive(message.payload, {absl::MakeSpan(destinations[i])},
                                   OperationId(i + 1));
        }
        return a.sent.size() == kCount && b.received.size() + dropped == kCount * 2 / 3;
      },
      &a));
  for (uint64_t i = 0; i < kCount; ++i) {
    if (i % 5 == 0) continue;
    EXPECT_EQ(destinations[i], sources[i]) << i;
  }
}

TEST_P(UcxChannelTest, RefusesWhatIsNotItsOwn) {
  Node a(Options()), b(Options());
  EXPECT_EQ(a.channel->Connect("nonsense").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(a.channel->Connect(b.channel->LocalAddress().substr(0, 12)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(a.channel->Send(PeerId(99), "h", {}, OperationId(1)).ok());
  EXPECT_FALSE(a.channel->Receive(PayloadId(99), {}, OperationId(1)).ok());
  PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
  std::string longest(a.channel->max_header_bytes(), 'x');
  EXPECT_FALSE(a.channel->Send(to_b, longest + "x", {}, OperationId(1)).ok());
  ASSERT_TRUE(a.channel->Send(to_b, longest, {}, OperationId(2)).ok());
  ASSERT_TRUE(b.WaitForMessages(1, &a));
  EXPECT_EQ(b.messages[0].header, longest);
}

TEST_P(UcxChannelTest, RefusesDamagedAddresses) {
  Node a(Options()), b(Options());
  const std::string good = b.channel->LocalAddress();
  const auto code = [&](const std::string& address) {
    return a.channel->Connect(address).status().code();
  };
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_EQ(code(good.substr(0, size)), absl::StatusCode::kInvalidArgument) << size;
  }
  EXPECT_EQ(code(good + "x"), absl::StatusCode::kInvalidArgument);
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(~bad[at]);
    EXPECT_EQ(code(bad), absl::StatusCode::kInvalidArgument) << at;
  }
  for (const char* magic : {"SLU1", "SLU2"}) {
    EXPECT_EQ(code(magic + std::string(200, '\xff')), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code(magic + std::string(200, '\0')), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(code(good), absl::StatusCode::kOk);
}

// The heart of receiver-driven transfer: once our receive has ended, nobody writes to its memory,
// even though the sender is alive and knows nothing.
TEST_P(UcxChannelTest, NothingIsWrittenAfterTheReceiveEnded) {
  int interrupted = 0;
  std::vector<uint8_t> source(32 << 20, 0x55);
  std::vector<uint8_t> destination(source.size());
  for (size_t bytes_before : {0, 1, 1 << 20, 8 << 20}) {
    std::fill(destination.begin(), destination.end(), 0);
    Node a(Options()), b(Options());
    PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
    PeerId to_a = *b.channel->Connect(a.channel->LocalAddress());
    OperationId id(1);
    ASSERT_TRUE(a.channel->Send(to_b, "h", {absl::MakeConstSpan(source)}, id).ok());
    ASSERT_TRUE(b.WaitForMessages(1, &a));
    ASSERT_TRUE(b.channel->Receive(b.messages[0].payload, {absl::MakeSpan(destination)}, id).ok());
    // The transports write in order, so this stops in the middle.
    ASSERT_TRUE(
        b.WaitUntil([&] { return bytes_before == 0 || destination[bytes_before - 1] != 0; }, &a));
    b.channel->Disconnect(to_a);
    ASSERT_TRUE(b.WaitUntil([&] { return b.received.contains(id); }));
    interrupted += !b.received[id].ok();
    std::fill(destination.begin(), destination.end(), 0xee);  // the memory has a new owner
    absl::Time end = MonotonicNow() + absl::Milliseconds(300);
    while (MonotonicNow() < end) {
      a.Poll();
      b.Poll();
    }
    EXPECT_TRUE(AllAre(destination, 0xee)) << bytes_before;
    a.channel->Disconnect(to_b);
    EXPECT_TRUE(a.WaitUntil([&] { return a.sent.contains(id); }));
  }
  EXPECT_GE(interrupted, 2) << "too few receives were pending for this to prove anything";
}

TEST_P(UcxChannelTest, ConnectsAgainAfterDisconnect) {
  Node a(Options()), b(Options());
  for (int round = 0; round < 3; ++round) {
    PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
    PeerId to_a = *b.channel->Connect(a.channel->LocalAddress());
    std::vector<uint8_t> source = Pattern(200000, 3), destination(200000);
    OperationId id(static_cast<uint64_t>(round) + 1);
    b.messages.clear();
    ASSERT_TRUE(a.channel->Send(to_b, "h", {absl::MakeConstSpan(source)}, id).ok());
    ASSERT_TRUE(b.WaitForMessages(1, &a)) << round;
    ASSERT_TRUE(b.channel->Receive(b.messages[0].payload, {absl::MakeSpan(destination)}, id).ok());
    ASSERT_TRUE(b.WaitUntil([&] { return b.received.contains(id) && a.sent.contains(id); }, &a));
    EXPECT_TRUE(b.received[id].ok()) << b.received[id];
    EXPECT_EQ(source, destination);
    a.channel->Disconnect(to_b);
    b.channel->Disconnect(to_a);
    b.WaitUntil([] { return false; }, &a, absl::Milliseconds(50));
  }
}

// One side gives up and comes again; the other side has to notice, or it would hold half a
// connection.
TEST_P(UcxChannelTest, NoticesThatThePeerConnectedAnew) {
  for (bool traffic_both_ways : {true, false}) {
    Node a(Options()), b(Options());
    PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
    ASSERT_TRUE(a.channel->Send(to_b, "1", {}, OperationId(1)).ok());
    ASSERT_TRUE(b.WaitForMessages(1, &a));
    EXPECT_EQ(b.messages[0].peer, PeerId());  // no endpoint back yet
    PeerId to_a = *b.channel->Connect(a.channel->LocalAddress());
    if (traffic_both_ways) {
      ASSERT_TRUE(a.channel->Send(to_b, "2", {}, OperationId(2)).ok());
      ASSERT_TRUE(b.channel->Send(to_a, "3", {}, OperationId(3)).ok());
      ASSERT_TRUE(b.WaitForMessages(2, &a));
      ASSERT_TRUE(a.WaitForMessages(1, &b));
    }
    a.channel->Disconnect(to_b);
    b.WaitUntil([] { return false; }, &a, absl::Milliseconds(20));
    b.messages.clear();
    to_b = *a.channel->Connect(b.channel->LocalAddress());
    ASSERT_TRUE(a.channel->Send(to_b, "4", {}, OperationId(4)).ok());
    ASSERT_TRUE(b.WaitUntil([&] { return !b.failed.empty(); }, &a));
    b.channel->Disconnect(to_a);
    to_a = *b.channel->Connect(a.channel->LocalAddress());
    a.WaitUntil([&] { return !a.failed.empty(); }, &b, absl::Milliseconds(200));
    if (!a.failed.empty()) {  // it may see our new endpoint as the end of its own
      a.channel->Disconnect(to_b);
      to_b = *a.channel->Connect(b.channel->LocalAddress());
    }
    // Now it carries payload again, and a receive that hangs can be ended.
    std::vector<uint8_t> source = Pattern(300000, 4), destination(300000);
    ASSERT_TRUE(a.channel->Send(to_b, "5", {absl::MakeConstSpan(source)}, OperationId(5)).ok());
    ChannelEvent* last = nullptr;
    ASSERT_TRUE(b.WaitUntil(
        [&] {
          for (ChannelEvent& message : b.messages) {
            if (message.header == "5") last = &message;
          }
          return last != nullptr;
        },
        &a));
    ASSERT_TRUE(
        b.channel->Receive(last->payload, {absl::MakeSpan(destination)}, OperationId(6)).ok());
    b.channel->Disconnect(to_a);  // before A has answered
    EXPECT_TRUE(b.WaitUntil([&] { return b.received.contains(OperationId(6)); }));
  }
}

TEST_P(UcxChannelTest, NamesAnUnexpectedTransport) {
  UcxOptions picky = Options();
  picky.expect_transport = Expected() == "tcp" ? "shm" : "tcp";
  Node a(picky), b(Options());
  PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
  ASSERT_TRUE(a.channel->Send(to_b, "h", {}, OperationId(1)).ok());
  ASSERT_TRUE(a.WaitUntil([&] { return !a.failed.empty(); }, &b));
  EXPECT_EQ(a.failed[0].code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(a.failed[0].message()),
              ::testing::HasSubstr(absl::StrCat("is '", Expected(), "'")));
}

TEST_P(UcxChannelTest, WakesFromAnotherThread) {
  Node a(Options());
  absl::Duration slowest;
  for (int i = 0; i < 5; ++i) {
    absl::Time woken;
    std::atomic<bool> is_waking = false;
    std::thread waker([&] {
      usleep(30000);
      woken = MonotonicNow();
      is_waking = true;
      a.channel->Wake();
    });
    // It may return early for reasons of its own.
    while (!is_waking) {
      a.channel->WaitForActivity(absl::Seconds(10));
      a.Poll();
    }
    absl::Time end = MonotonicNow();
    waker.join();
    slowest = std::max(slowest, end - woken);
  }
  EXPECT_LT(slowest, absl::Seconds(1));
}

TEST_P(UcxChannelTest, SleepsWhenIdle) {
  Node a(Options()), b(Options());
  PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
  ASSERT_TRUE(b.channel->Connect(a.channel->LocalAddress()).ok());
  ASSERT_TRUE(a.channel->Send(to_b, "h", {}, OperationId(1)).ok());
  ASSERT_TRUE(b.WaitForMessages(1, &a));
  auto cpu = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
  };
  absl::Duration before = cpu();
  absl::Time end = MonotonicNow() + absl::Milliseconds(1500);
  int wakeups = 0;
  while (MonotonicNow() < end) {
    a.Poll();
    a.channel->WaitForActivity(end - MonotonicNow());
    ++wakeups;
  }
  EXPECT_LT(wakeups, 100);
  EXPECT_LT(cpu() - before, absl::Milliseconds(300));
}

// Each arrival leaves a signal over, for which UCX once refuses to be armed.
TEST_P(UcxChannelTest, SteadyTrafficIsNotTakenForAQueueThatIsBlocked) {
  Node a(Options()), b(Options()), c(Options());
  const std::string address = a.channel->LocalAddress();
  const std::vector<uint8_t> payload = Pattern(1 << 20, 1);
  const PeerId to_b = *a.channel->Connect(b.channel->LocalAddress());
  ASSERT_TRUE(a.channel->Send(to_b, "never taken", {payload}, OperationId(1)).ok());
  ASSERT_TRUE(a.WaitUntil([&] { return !b.messages.empty(); }, &b));
  const PeerId to_a = *c.channel->Connect(address);
  const absl::Time end = MonotonicNow() + absl::Milliseconds(1500);
  for (uint64_t i = 1; MonotonicNow() < end; ++i) {
    ASSERT_TRUE(c.channel->Send(to_a, "h", {}, OperationId(i)).ok());
    c.Poll();
    a.Poll();
    a.channel->WaitForActivity(absl::Seconds(1));
  }
  EXPECT_EQ(a.channel->LocalAddress(), address);  // a renewed one has another
  EXPECT_TRUE(a.failed.empty());
}

TEST_P(UcxChannelTest, TalksToAnotherProcess) {
  Node a(Options());
  PeerProcess peer(GetParam(), a.channel->LocalAddress());
  PeerId to_peer = *a.channel->Connect(peer.address());
  std::vector<uint8_t> source = Pattern(4 << 20, 9);
  uint64_t sum = std::accumulate(source.begin(), source.end(), uint64_t{0});
  ASSERT_TRUE(a.channel->Send(to_peer, "take", {absl::MakeConstSpan(source)}, OperationId(1)).ok());
  ASSERT_TRUE(a.WaitForMessages(1));
  EXPECT_EQ(a.messages[0].header, absl::StrCat("took ", sum));
  ASSERT_TRUE(a.channel->Send(to_peer, "drop", {absl::MakeConstSpan(source)}, OperationId(2)).ok());
  ASSERT_TRUE(a.WaitUntil([&] { return a.sent.contains(OperationId(2)); }));
  ASSERT_TRUE(a.channel->Send(to_peer, "send 3000000", {}, OperationId(3)).ok());
  ASSERT_TRUE(a.WaitForMessages(3));
  std::vector<uint8_t> destination(3000000);
  ASSERT_TRUE(
      a.channel->Receive(a.messages[2].payload, {absl::MakeSpan(destination)}, OperationId(4))
          .ok());
  ASSERT_TRUE(a.WaitUntil([&] { return a.received.contains(OperationId(4)); }));
  EXPECT_EQ(destination, Pattern(3000000, 7));
  ASSERT_EQ(a.channel->Transports().size(), 1u);
  EXPECT_EQ(a.channel->Transports()[0].transport, Expected());
}

TEST_P(UcxChannelTest, PendingSendEndsWhenThePeerIsKilled) {
  Node a(Options());
  PeerProcess peer(GetParam(), a.channel->LocalAddress());
  PeerId to_peer = *a.channel->Connect(peer.address());
  std::vector<uint8_t> source = Pattern(4 << 20, 9);
  ASSERT_TRUE(a.channel->Send(to_peer, "hold", {absl::MakeConstSpan(source)}, OperationId(1)).ok());
  a.WaitUntil([] { return false; }, nullptr, absl::Milliseconds(200));
  ASSERT_FALSE(a.sent.contains(OperationId(1)));
  peer.Kill();
  // UCX notices by itself, or (as the agent does when heartbeats stay away) we disconnect.
  a.WaitUntil([&] { return !a.failed.empty(); }, nullptr, absl::Seconds(2));
  a.channel->Disconnect(to_peer);
  EXPECT_TRUE(
      a.WaitUntil([&] { return a.sent.contains(OperationId(1)); }, nullptr, absl::Seconds(3)));
  EXPECT_FALSE(a.sent[OperationId(1)].ok());
}

TEST_P(UcxChannelTest, PendingReceiveEndsWhenThePeerIsStoppedOrKilled) {
  for (int signal : {SIGSTOP, SIGKILL}) {
    Node a(Options());
    PeerProcess peer(GetParam(), a.channel->LocalAddress());
    PeerId to_peer = *a.channel->Connect(peer.address());
    ASSERT_TRUE(a.channel->Send(to_peer, "send-stop 4000000", {}, OperationId(1)).ok());
    ASSERT_TRUE(a.WaitForMessages(1));
    peer.WaitUntilStopped();  // its half of the rendezvous will not come
    std::vector<uint8_t> destination(4000000);
    ASSERT_TRUE(
        a.channel->Receive(a.messages[0].payload, {absl::MakeSpan(destination)}, OperationId(2))
            .ok());
    a.WaitUntil([] { return false; }, nullptr, absl::Milliseconds(200));
    if (signal == SIGKILL) {
      peer.Kill();
      a.WaitUntil([&] { return !a.failed.empty(); }, nullptr, absl::Seconds(2));
    }
    a.channel->Disconnect(to_peer);
    EXPECT_TRUE(a.WaitUntil([&] { return a.received.contains(OperationId(2)); }, nullptr,
                            absl::Seconds(3)));
    EXPECT_FALSE(a.received[OperationId(2)].ok());
    std::fill(destination.begin(), destination.end(), 0xee);
    peer.Signal(SIGCONT);
    a.WaitUntil([] { return false; }, nullptr, absl::Milliseconds(300));
    EXPECT_TRUE(AllAre(destination, 0xee));
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, UcxChannelTest, ::testing::Values("tcp", "shm", "all"),
                         [](const auto& info) { return info.param; });

TEST(UcxChannel, LeavesFatalSignalsAlone) {
  Node a(OptionsFor("tcp"));
  struct sigaction action;
  ASSERT_EQ(sigaction(SIGSEGV, nullptr, &action), 0);
  Dl_info info;
  void* handler = reinterpret_cast<void*>(action.sa_sigaction);
  if (handler != nullptr && dladdr(handler, &info) != 0 && info.dli_fname != nullptr) {
    EXPECT_THAT(std::string(info.dli_fname), ::testing::Not(::testing::HasSubstr("libucs")));
  }
}

TEST(UcxChannel, RefusesImpossibleOptions) {
  UcxOptions options;
  options.tls = "no_such_transport";
  EXPECT_EQ(CreateUcxChannel(options).status().code(), absl::StatusCode::kFailedPrecondition);
  options.tls = "tcp";
  options.expect_transport = "pigeon";
  EXPECT_EQ(CreateUcxChannel(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(UcxAddress, RoundTripOfVersionsThatUcxKnows) {
  for (int first = 0; first < 256; ++first) {
    UcxAddress address{0x0123456789abcdef, "node:7", std::string(40, static_cast<char>(first))};
    const absl::StatusOr<UcxAddress> read = ParseUcxAddress(EncodeUcxAddress(address));
    if ((first & 0x0f) > 1) {
      EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << first;
      continue;
    }
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->channel_id, address.channel_id);
    EXPECT_EQ(read->name, address.name);
    EXPECT_EQ(read->worker, address.worker);
  }
  EXPECT_FALSE(ParseUcxAddress(EncodeUcxAddress({1, "node:7", ""})).ok());
}

TEST(UcxAddress, NamesAreValidUtf8) {
  const auto name = [](const std::string& given) {
    return ParseUcxAddress(EncodeUcxAddress({1, given, std::string(1, '\0')}))->name;
  };
  EXPECT_EQ(name("n\xFFode"), "n\uFFFDode");
  // Cut at a character's end.
  EXPECT_EQ(name(std::string(kMaxUcxNameBytes - 1, 'n') + "é"), std::string(127, 'n'));
  EXPECT_EQ(name(std::string(kMaxUcxNameBytes, '\xFF')).size(), 126u);
  // A peer that does not keep to it.
  std::string bytes = EncodeUcxAddress({1, "node", std::string(1, '\0')});
  bytes[bytes.find("node")] = '\xFF';
  bytes.resize(bytes.size() - sizeof(uint64_t));
  const uint64_t check = XXH3_64bits(bytes.data(), bytes.size());
  bytes.append(reinterpret_cast<const char*>(&check), sizeof(check));
  EXPECT_EQ(ParseUcxAddress(bytes)->name, "\uFFFDode");
}

TEST(UcxLanes, ReadsThePrint) {
  std::string lanes = LanesOf(
      "#\n# UCP endpoint\n#               peer: <no debug data>\n"
      "#   lane[0]:  2:rc_mlx5/mlx5_0:1.0 md[3]  -> md[3]/ib/sysdev[0] rma_bw#0 am am_bw#0\n"
      "#   lane[1]: 12:tcp/eth0.0 md[1]  -> md[1]/tcp/sysdev[255] keepalive wireup\n");
  EXPECT_EQ(lanes, "rc_mlx5/mlx5_0:1.0 rma_bw#0 am am_bw#0; tcp/eth0.0 keepalive wireup");
  EXPECT_EQ(TransportOf(lanes), "rdma");
  EXPECT_EQ(TransportOf("posix/memory.0 am am_bw#0"), "shm");
  EXPECT_EQ(TransportOf("posix/memory.0 am; tcp/eth0.0 am_bw#1"), "tcp");
  EXPECT_EQ(TransportOf("self/memory0.0 am"), "self");
  EXPECT_EQ(TransportOf(LanesOf("something else")), "");
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  int exit_code = 0;
  if (sluice::RunAsPeer(argc, argv, &exit_code)) return exit_code;
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
