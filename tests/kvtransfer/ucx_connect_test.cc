// Peers that cannot be reached, or die while they are connected to, over TCP. UCX's connect() comes
// through this file, which sends it elsewhere.
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kvtransfer/ucx_harness.h"

namespace {

// While it is set: the port that connections go to, and what happens after each.
int redirected_port = 0;
std::function<void(int)> after_connect;

}  // namespace

// Takes the place of the C library's in this program, for UCX too.
extern "C" int connect(int fd, const sockaddr* address, socklen_t size_bytes) {
  static const auto real =
      reinterpret_cast<int (*)(int, const sockaddr*, socklen_t)>(dlsym(RTLD_NEXT, "connect"));
  if (redirected_port == 0 || address->sa_family != AF_INET) return real(fd, address, size_bytes);
  sockaddr_in elsewhere;
  std::memcpy(&elsewhere, address, sizeof(elsewhere));
  elsewhere.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  elsewhere.sin_port = htons(static_cast<uint16_t>(redirected_port));
  const int result = real(fd, reinterpret_cast<const sockaddr*>(&elsewhere), sizeof(elsewhere));
  const int error = errno;
  if (after_connect) after_connect(fd);
  errno = error;
  return result;
}

namespace sluice {
namespace {

// A host as TCP sees it.
class Listener {
 public:
  Listener() {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size_bytes = sizeof(address);
    auto* any = reinterpret_cast<sockaddr*>(&address);
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd_, any, size_bytes) != 0 || listen(fd_, 0) != 0 ||
        getsockname(fd_, any, &size_bytes) != 0) {
      ADD_FAILURE() << "no listener: " << std::strerror(errno);
    }
    port_ = ntohs(address.sin_port);
  }
  ~Listener() {
    Close();
    for (int fd : others_) close(fd);
  }
  int port() const { return port_; }

  // Takes no connection any more and refuses none: whoever tries is left waiting.
  void FallSilent() {
    for (int i = 0; i < 4; ++i) {
      sockaddr_in address = {};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      address.sin_port = htons(static_cast<uint16_t>(port_));
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
      others_.push_back(fd);
    }
  }

  // As the kernel does for a killed process: its connections are reset, new ones refused.
  void Die() {
    if (const int accepted = accept(fd_, nullptr, nullptr); accepted >= 0) {
      const linger reset = {1, 0};
      setsockopt(accepted, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
      close(accepted);
    }
    Close();
  }

 private:
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  int fd_ = -1;
  int port_ = 0;
  std::vector<int> others_;
};

absl::Duration CpuTime() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

class UcxConnectTest : public ::testing::Test {
 protected:
  UcxConnectTest() : a_(OptionsFor("tcp")), friend_(OptionsFor("tcp")), gone_(OptionsFor("tcp")) {
    to_friend_ = *a_.channel->Connect(friend_.channel->LocalAddress());
    EXPECT_TRUE(FriendsHear());
  }
  ~UcxConnectTest() override {
    redirected_port = 0;
    after_connect = nullptr;
  }

  // Whether a living peer is still talked to.
  bool FriendsHear() {
    friend_.messages.clear();
    return a_.channel->Send(to_friend_, "hello", {}, OperationId(1)).ok() &&
           friend_.WaitForMessages(1, &a_);
  }

  // Of a channel that has nothing to do but wait.
  absl::Duration CpuTimeOfASecond() {
    const absl::Duration before = CpuTime();
    for (const absl::Time end = MonotonicNow() + absl::Seconds(1); MonotonicNow() < end;) {
      a_.Poll();
      a_.channel->WaitForActivity(end - MonotonicNow());
    }
    return CpuTime() - before;
  }
  // Greets the peer that is not there; how long that took.
  absl::Duration GreetTheGone() {
    const absl::Time begin = MonotonicNow();
    absl::StatusOr<PeerId> peer = a_.channel->Connect(gone_.channel->LocalAddress());
    if (peer.ok()) a_.channel->Send(*peer, "hello", {}, OperationId(2)).IgnoreError();
    return MonotonicNow() - begin;
  }

  Node a_;
  Node friend_;
  Node gone_;
  PeerId to_friend_;
  Listener listener_;
};

TEST_F(UcxConnectTest, ASilentHostHoldsUpNobody) {
  listener_.FallSilent();
  redirected_port = listener_.port();
  EXPECT_LT(GreetTheGone(), absl::Seconds(5));  // not minutes
  EXPECT_TRUE(FriendsHear());
  // Nor does waiting for it keep anybody busy.
  EXPECT_LT(CpuTimeOfASecond(), absl::Milliseconds(300));
}

// The kernel takes connections for a stopped process.
TEST_F(UcxConnectTest, AHostThatTakesTheConnectionAndSaysNothingKeepsNobodyBusy) {
  redirected_port = listener_.port();
  EXPECT_LT(GreetTheGone(), absl::Seconds(5));  // not minutes
  EXPECT_TRUE(FriendsHear());
  EXPECT_LT(CpuTimeOfASecond(), absl::Milliseconds(300));
}

// Nor when nothing is to be sent to it.
TEST_F(UcxConnectTest, AConnectionThatIsNotAnsweredKeepsNobodyBusy) {
  redirected_port = listener_.port();
  ASSERT_TRUE(a_.channel->Connect(gone_.channel->LocalAddress()).ok());
  EXPECT_LT(CpuTimeOfASecond(), absl::Milliseconds(300));
}

TEST_F(UcxConnectTest, WhatWasGivenUpWhileConnectingIsConnectedToLater) {
  listener_.FallSilent();
  redirected_port = listener_.port();
  absl::StatusOr<PeerId> peer = a_.channel->Connect(gone_.channel->LocalAddress());
  ASSERT_TRUE(peer.ok());
  const std::vector<uint8_t> source(1 << 20, 3);
  ASSERT_TRUE(a_.channel->Send(*peer, "hello", {absl::MakeConstSpan(source)}, OperationId(3)).ok());
  a_.PollFor(absl::Milliseconds(50));
  a_.channel->Disconnect(*peer);
  ASSERT_TRUE(a_.WaitUntil([&] { return a_.sent.contains(OperationId(3)); }));
  EXPECT_FALSE(a_.sent[OperationId(3)].ok());
  redirected_port = 0;
  peer = a_.channel->Connect(gone_.channel->LocalAddress());
  ASSERT_TRUE(peer.ok()) << peer.status();
  ASSERT_TRUE(a_.channel->Send(*peer, "hello", {}, OperationId(4)).ok());
  EXPECT_TRUE(gone_.WaitForMessages(1, &a_));
}

TEST_F(UcxConnectTest, WhoDiesRightAfterTheConnectionStandsIsAFailedPeer) {
  redirected_port = listener_.port();
  after_connect = [this](int fd) {
    pollfd connected = {fd, POLLOUT, 0};
    poll(&connected, 1, 1000);
    listener_.Die();
    pollfd reset = {fd, POLLIN, 0};
    poll(&reset, 1, 1000);
    after_connect = nullptr;
  };
  GreetTheGone();
  EXPECT_TRUE(a_.WaitUntil([&] { return !a_.failed.empty(); }));
  EXPECT_TRUE(FriendsHear());
}

// Neither has heard of the other when it connects: UCX has to choose one of two connections.
TEST(UcxSimultaneousConnect, BothAreHeardEachTime) {
  Node a(OptionsFor("tcp")), b(OptionsFor("tcp"));
  for (uint64_t round = 1; round <= 100; ++round) {
    a.messages.clear();
    b.messages.clear();
    absl::StatusOr<PeerId> to_b = a.channel->Connect(b.channel->LocalAddress());
    absl::StatusOr<PeerId> to_a = b.channel->Connect(a.channel->LocalAddress());
    ASSERT_TRUE(to_b.ok() && to_a.ok()) << to_b.status() << to_a.status();
    const std::vector<uint8_t> source(200000, 3);
    ASSERT_TRUE(
        a.channel->Send(*to_b, "x", {absl::MakeConstSpan(source)}, OperationId(round)).ok());
    ASSERT_TRUE(b.channel->Send(*to_a, "x", {}, OperationId(round)).ok());
    ASSERT_TRUE(a.WaitForMessages(1, &b)) << round;
    ASSERT_TRUE(b.WaitForMessages(1, &a)) << round;
    b.channel->Drop(b.messages[0].payload);
    a.channel->Disconnect(*to_b);
    b.channel->Disconnect(*to_a);
    // Both have to have let go before they meet again.
    for (int i = 0; i < 20; ++i) {
      a.Poll();
      b.Poll();
    }
  }
}

}  // namespace
}  // namespace sluice
