// Clients of the HTTP server that are silent, or slow to read.
#include <arpa/inet.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "services/router/http/silent_client.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

// The server's end of the connection from this local port: it lives in this process. -1: not found.
int ServerSocketOf(int client_port) {
  rlimit descriptors = {};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  for (int fd = 0; fd < static_cast<int>(std::min<rlim_t>(descriptors.rlim_cur, 65536)); ++fd) {
    sockaddr_in peer = {};
    socklen_t size = sizeof(peer);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0 &&
        peer.sin_family == AF_INET && ntohs(peer.sin_port) == client_port) {
      return fd;
    }
  }
  return -1;
}

int OptionOf(int fd, int level, int option) {
  int value = -1;
  socklen_t size = sizeof(value);
  return getsockopt(fd, level, option, &value, &size) == 0 ? value : -1;
}

class SilentClientTest : public HttpFixture {};

// A host that is gone cannot be had without privileges, and would take half a minute: what the
// kernel was told must do.
TEST_F(SilentClientTest, TheKernelIsToldToNoticeThem) {
  HttpClient client(port());
  ASSERT_EQ(client.Get("/livez").status, 200);  // it has been accepted
  const int fd = ServerSocketOf(client.local_port());
  ASSERT_GE(fd, 0);
  EXPECT_EQ(OptionOf(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_KEEPIDLE), 15);
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_KEEPINTVL), 5);
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_KEEPCNT), 3);
  // In milliseconds. Less would end the probing before all probes have had their time.
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_USER_TIMEOUT), (15 + 3 * 5) * 1000);
}

// Nothing that a connection needs, only what ends it sooner.
TEST_F(SilentClientTest, ASocketThatCannotBeSetIsNoError) {
  BreakWhenClientIsSilent(-1);
  const int datagrams = socket(AF_INET, SOCK_DGRAM, 0);
  BreakWhenClientIsSilent(datagrams);
  close(datagrams);
}

// An answer that is not streamed, too large for the buffers of both kernels.
class UnreadAnswerTest : public HttpFixture {
 protected:
  UnreadAnswerTest(absl::Duration write_timeout, int send_buffer_bytes, size_t answer_bytes)
      : HttpFixture(Options(write_timeout, send_buffer_bytes), LongContext()),
        write_timeout_(write_timeout) {
    while (prompt_.size() < answer_bytes) prompt_ += "once upon a time ";
  }

  static HttpOptions Options(absl::Duration write_timeout, int send_buffer_bytes) {
    HttpOptions options;
    options.write_timeout = write_timeout;
    options.socket_send_buffer_bytes = send_buffer_bytes;
    return options;
  }
  static ApiOptions LongContext() {
    ApiOptions options;
    options.max_model_len = 1 << 22;
    return options;
  }
  void Ask(HttpClient* client) {
    Json body = CompletionBody(prompt_);
    body["echo"] = true;
    client->SendPost("/v1/completions", body.dump());
    const auto generation = dispatcher_.NextGeneration();
    generation.Tokens(Ids(" there"));
    generation.End(GenerationEnd::kLength);
  }
  // A little again and again until several timeouts have passed, then the rest. A client that was
  // kept from reading, because the machine stood still, tries again.
  void ExpectAllOfItRead() {
    for (int round = 0; round < 3; ++round) {
      absl::Duration longest_pause;
      const HttpReply reply = ReadSlowly(&longest_pause);
      if (!reply.complete && longest_pause > write_timeout_ / 2) continue;
      EXPECT_EQ(reply.status, 200);
      ASSERT_TRUE(reply.complete) << reply.body.size();
      EXPECT_TRUE(Json::parse(reply.body)["choices"][0]["text"] == prompt_ + " there");
      return;
    }
    FAIL() << "the machine stands still too often";
  }
  HttpReply ReadSlowly(absl::Duration* longest_pause) {
    HttpClient client(port(), /*receive_buffer_bytes=*/8192);
    Ask(&client);
    const absl::Time end = MonotonicNow() + 2.5 * write_timeout_;
    for (absl::Time last = MonotonicNow(); last < end;) {
      if (!client.ReadSome()) break;
      absl::SleepFor(absl::Milliseconds(50));
      *longest_pause = std::max(*longest_pause, MonotonicNow() - last);
      last = MonotonicNow();
    }
    return client.ReadReply();
  }

  const absl::Duration write_timeout_;
  std::string prompt_;
};

class ReadsNothingTest : public UnreadAnswerTest {
 protected:
  ReadsNothingTest() : UnreadAnswerTest(absl::Milliseconds(300), 4096, 1 << 20) {}
};

TEST_F(ReadsNothingTest, IsClosed) {
  HttpClient client(port(), /*receive_buffer_bytes=*/8192);
  Ask(&client);
  bool closed = false;
  for (int i = 0; i < 1000 && !closed; ++i) {
    absl::SleepFor(absl::Milliseconds(10));
    closed = MetricsText().find("\nsluice_http_connections 0\n") != std::string::npos;
  }
  EXPECT_TRUE(closed);
  EXPECT_FALSE(client.ReadReply().complete);
}

// A stream that stands still is closed as well, however little waits in it.
TEST_F(ReadsNothingTest, AStreamUnderItsCapIsEvicted) {
  HttpClient client(port(), /*receive_buffer_bytes=*/2048);
  Json body = CompletionBody();
  body["stream"] = true;
  body["max_tokens"] = 4096;
  client.SendPost("/v1/completions", body.dump());
  const auto generation = dispatcher_.NextGeneration();
  for (int i = 0; i < 1000; ++i) generation.Tokens(Ids(" there"));  // some 200 KB
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(10)));
  EXPECT_TRUE(WaitForMetric("sluice_slow_client_evictions_total{api=\"http\"}", "1"));
  EXPECT_TRUE(WaitForMetric("sluice_http_connections", "0"));
}

// Reading a little now and then holds a connection and its answer for a while only.
class ReadsForeverTest : public UnreadAnswerTest {
 protected:
  ReadsForeverTest() : UnreadAnswerTest(absl::Milliseconds(300), 4096, 1 << 20) {}
};

TEST_F(ReadsForeverTest, IsClosed) {
  HttpClient client(port(), /*receive_buffer_bytes=*/8192);
  Ask(&client);
  int reads = 0;
  while (reads < 1000 && client.ReadSome()) {
    ++reads;
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_FALSE(client.ReadReply().complete);
}

// Each piece that leaves gives the next one its own time.
class ReadsSteadilyTest : public UnreadAnswerTest {
 protected:
  ReadsSteadilyTest() : UnreadAnswerTest(absl::Seconds(2), 4096, 1 << 20) {}
};

TEST_F(ReadsSteadilyTest, GetsAllOfIt) { ExpectAllOfItRead(); }

// The kernel takes nothing more before a third of its buffer is free, which takes this client
// longer than the timeout.
class ReadsFromALargeBufferTest : public UnreadAnswerTest {
 protected:
  ReadsFromALargeBufferTest() : UnreadAnswerTest(absl::Seconds(2), 512 * 1024, 2 << 20) {}
};

TEST_F(ReadsFromALargeBufferTest, GetsAllOfIt) { ExpectAllOfItRead(); }

class LargeAnswerTest : public UnreadAnswerTest {
 protected:
  LargeAnswerTest() : UnreadAnswerTest(absl::Seconds(30), 0, 1 << 20) {}

  // Bytes in use of all of this process.
  static int64_t HeapBytes() {
    const struct mallinfo2 info = mallinfo2();
    return static_cast<int64_t>(info.uordblks + info.hblkhd);
  }
  // Leaves the connection open.
  std::unique_ptr<HttpClient> HadLargeAnswer() {
    auto client = std::make_unique<HttpClient>(port());
    const Json body = {{"model", "deepseek-tiny"}, {"prompt", prompt_}};
    size_t answer_bytes = 0;
    while (answer_bytes < (1 << 20)) {
      const HttpReply reply = client->Post("/tokenize", body.dump());
      EXPECT_EQ(reply.status, 200);
      if (reply.status != 200) break;
      answer_bytes += reply.body.size();
    }
    EXPECT_EQ(client->Get("/livez").status, 200);
    return client;
  }
};

// (With a sanitizer the heap is not seen, and nothing is checked.)
TEST_F(LargeAnswerTest, ItsMemoryIsNotKeptByTheConnection) {
  HadLargeAnswer();
  const int64_t before = HeapBytes();
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 16; ++i) clients.push_back(HadLargeAnswer());
  // A connection may keep 64 KiB of what it read, and little else.
  EXPECT_LT(HeapBytes() - before, 16 * 256 * 1024);
}

}  // namespace
}  // namespace sluice::router
