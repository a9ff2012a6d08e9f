// gRPC clients that read slowly, or nothing more, or are gone.
#include <sys/socket.h>
#include <sys/time.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>

#include "tests/router_api/grpc_fixture.h"

namespace sluice::router {
namespace {

class GrpcSlowClientTest : public GrpcTest {
 protected:
  explicit GrpcSlowClientTest(const GrpcOptions& options = SmallLimits()) : GrpcTest(options) {}

  static v1::GenerateRequest PromptForWideTokens() {
    v1::GenerateRequest request = Prompt("Go");
    request.mutable_sampling()->set_logprobs(true);
    request.mutable_sampling()->set_top_logprobs(5);
    return request;
  }
  // Some hundred bytes of an answer.
  SampledToken WideToken() const {
    const TokenId a = Ids("a")[0];
    SampledToken token{a, -1, {}};
    for (int i = 0; i < 5; ++i) token.top.push_back({a + i, -1.5f});
    return token;
  }
  void ExpectNothingIsLeft() {
    EXPECT_TRUE(WaitForMetric("sluice_stream_buffered_bytes{api=\"grpc\"} 0"));
    EXPECT_TRUE(WaitForMetric("sluice_streams{api=\"grpc\"} 0"));
  }
};

// Many times the buffer of a slow client, in one message and while another is being written.
TEST_F(GrpcSlowClientTest, LargeMessagesReachAClientThatReads) {
  grpc::ClientContext rpc;
  Bound(&rpc, 30);
  const v1::GenerateRequest request = PromptForWideTokens();
  auto reader = stub_->Generate(&rpc, request);
  const auto generation = dispatcher_.NextGeneration();
  const SampledToken token = WideToken();
  v1::GenerateResponse response;
  int received = 0;
  for (const int count : {8000, 1, 8000}) {
    generation.Sampled(std::vector<SampledToken>(static_cast<size_t>(count), token));
    for (const int wanted = received + count; received < wanted;) {
      ASSERT_TRUE(reader->Read(&response)) << received;
      received += response.logprobs_size();
    }
  }
  generation.End(GenerationEnd::kLength);
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GrpcSlowClientTest, OneThatLetsTooMuchWaitIsEvicted) {
  Connect(/*unread_bytes=*/1024);
  grpc::ClientContext rpc;
  Bound(&rpc, 30);
  const v1::GenerateRequest request = PromptForWideTokens();
  auto reader = stub_->Generate(&rpc, request);
  const auto generation = dispatcher_.NextGeneration();
  const SampledToken token = WideToken();
  for (int i = 0; i < 50000 && dispatcher_.num_unfinished() > 0; ++i) {
    generation.Sampled(std::vector<SampledToken>(8, token));
    if (i % 100 == 99) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(10)));
  EXPECT_TRUE(WaitForMetric("sluice_slow_client_evictions_total{api=\"grpc\"} 1"));
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  ExpectNothingIsLeft();
}

class ShortWriteTimeoutTest : public GrpcSlowClientTest {
 protected:
  ShortWriteTimeoutTest() : GrpcSlowClientTest(ShortWriteTimeout()) { Connect(1024); }
  static GrpcOptions ShortWriteTimeout() {
    GrpcOptions options = SmallLimits();
    options.write_timeout = absl::Milliseconds(700);
    return options;
  }
};

// One message, so nothing waits behind it.
TEST_F(ShortWriteTimeoutTest, OneThatStopsInTheMiddleIsEvicted) {
  grpc::ClientContext rpc;
  Bound(&rpc, 30);
  auto reader = stub_->Generate(&rpc, PromptForWideTokens());
  const auto generation = dispatcher_.NextGeneration();
  generation.Sampled(std::vector<SampledToken>(2000, WideToken()));
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(10)));
  EXPECT_TRUE(WaitForMetric("sluice_slow_client_evictions_total{api=\"grpc\"} 1"));
  ExpectNothingIsLeft();
}

// The rest of a whole answer fits into gRPC's own buffers, so nothing of ours waits any more.
TEST_F(ShortWriteTimeoutTest, OneThatStopsBeforeTheEndIsEvicted) {
  grpc::ClientContext rpc;
  Bound(&rpc, 30);
  auto reader = stub_->Generate(&rpc, PromptForWideTokens());
  const auto generation = dispatcher_.NextGeneration();
  generation.Sampled(std::vector<SampledToken>(50, WideToken()));
  generation.End(GenerationEnd::kLength);
  EXPECT_TRUE(WaitForMetric("sluice_slow_client_evictions_total{api=\"grpc\"} 1"));
  ExpectNothingIsLeft();
}

TEST_F(ShortWriteTimeoutTest, OneThatReadsMayWaitForTokens) {
  grpc::ClientContext rpc;
  Bound(&rpc, 30);
  auto reader = stub_->Generate(&rpc, PromptForWideTokens());
  const auto generation = dispatcher_.NextGeneration();
  v1::GenerateResponse response;
  for (int i = 0; i < 2; ++i) {
    generation.Sampled({WideToken()});
    ASSERT_TRUE(reader->Read(&response));
    absl::SleepFor(absl::Milliseconds(1500));
  }
  generation.End(GenerationEnd::kLength);
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

class SilentClientTest : public GrpcTest {
 protected:
  SilentClientTest() : GrpcTest(ShortKeepalive()) {}
  static GrpcOptions ShortKeepalive() {
    GrpcOptions options;
    options.keepalive_time = absl::Milliseconds(100);
    options.keepalive_timeout = absl::Seconds(8);
    return options;
  }
};

// Reads frames and answers this many pings. False when they do not come.
bool AnswerPings(int fd, int num_pings) {
  constexpr char kPing = 6, kAck = 1;
  const timeval patience = {10, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  while (num_pings > 0) {
    std::string frame(9, '\0');  // length (3 bytes), type, flags, stream
    if (recv(fd, frame.data(), 9, MSG_WAITALL) != 9) return false;
    const size_t size = static_cast<size_t>(static_cast<uint8_t>(frame[1])) << 8 |
                        static_cast<size_t>(static_cast<uint8_t>(frame[2]));
    frame.resize(9 + size);
    if (size > 0 && recv(fd, &frame[9], size, MSG_WAITALL) != static_cast<ssize_t>(size)) {
      return false;
    }
    if (frame[3] != kPing || frame[4] == kAck) continue;
    frame[4] = kAck;
    if (send(fd, frame.data(), frame.size(), MSG_NOSIGNAL) < 0) return false;
    --num_pings;
  }
  return true;
}

// It lives for some pings, although its request only waits, and then nothing comes from it: its
// connection stays as it is.
TEST_F(SilentClientTest, TheRequestOfOneIsCancelled) {
  boost::asio::io_context io;
  boost::asio::ip::tcp::socket socket(io);
  socket.connect({boost::asio::ip::address_v4::loopback(), static_cast<uint16_t>(server_->port())});
  boost::asio::write(socket,
                     boost::asio::buffer(RawRequest("x-a", "b", Prompt("Go").SerializeAsString())));
  const auto generation = dispatcher_.NextGeneration();
  ASSERT_TRUE(AnswerPings(socket.native_handle(), 6));
  EXPECT_FALSE(dispatcher_.WaitForCancel(generation.spec().id, absl::ZeroDuration()));
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(20)));
}

}  // namespace
}  // namespace sluice::router
