// Long prompts before they are tokenized, over HTTP and gRPC: with the pool's one thread held,
// those whose clients leave are never tokenized, and what waits is bounded in bytes.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "services/router/grpc/grpc_server.h"
#include "sluice/v1/generation.grpc.pb.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

constexpr int kNumRequests = 6;
constexpr int kPromptBytes = 300;  // long enough for the pool, short enough for the model
constexpr int kMaxQueuedBytes = 16 * 1024;

constexpr char kGone[] = "sluice_client_disconnects_total{phase=\"before_first_token\"}";

ApiOptions SmallPool() {
  ApiOptions options;
  options.inline_prepare_bytes = 64;
  options.prepare_threads = 1;
  options.prepare_queue_bytes = kMaxQueuedBytes;
  return options;
}

class PreparePoolTest : public HttpFixture {
 protected:
  PreparePoolTest() : HttpFixture(HttpOptions(), SmallPool()) {
    AnswerWith("ok");
    // Not from what the tests themselves encode.
    encoded_before_ = tokenizer_->encoded_bytes();
    EXPECT_TRUE(context_->prepare_pool().Post([this] {
      held_.Notify();
      released_.WaitForNotification();
    }));
    held_.WaitForNotification();
  }
  ~PreparePoolTest() override { Release(); }

  void Release() {
    if (!released_.HasBeenNotified()) released_.Notify();
  }
  // Once everything that was posted before has run.
  int64_t EncodedBytes() {
    absl::Notification ran;
    EXPECT_TRUE(context_->prepare_pool().Post([&] { ran.Notify(); }));
    ran.WaitForNotification();
    return tokenizer_->encoded_bytes() - encoded_before_;
  }
  static std::string LongPrompt() { return std::string(kPromptBytes, 'a'); }

  absl::Notification held_, released_;
  int64_t encoded_before_ = 0;
};

TEST_F(PreparePoolTest, HttpClientsThatLeaveCostNoTokenizing) {
  const std::string body = CompletionBody(LongPrompt()).dump();
  HttpClient stays(port());
  stays.SendPost("/v1/completions", body);
  std::vector<std::unique_ptr<HttpClient>> leavers;
  for (int i = 1; i < kNumRequests; ++i) {
    leavers.push_back(std::make_unique<HttpClient>(port()));
    leavers.back()->SendPost("/v1/completions", body);
    leavers.back()->ShutdownSend();  // read after the request, unlike a reset
  }
  EXPECT_TRUE(WaitForMetric(kGone, absl::StrCat(kNumRequests - 1)));
  Release();
  EXPECT_EQ(stays.ReadReply().status, 200);
  EXPECT_EQ(EncodedBytes(), kPromptBytes);
}

class TwoThreadsTest : public HttpFixture {
 protected:
  static ApiOptions LongContext() {
    ApiOptions options;
    options.max_model_len = 1 << 22;
    return options;
  }
  TwoThreadsTest() : HttpFixture(HttpOptions(), LongContext()) { AnswerWith("ok"); }
};

// The worst prompt that a body can bring, and behind it an ordinary one of some pages.
TEST_F(TwoThreadsTest, OneHugePromptDoesNotHoldUpTheOthers) {
  absl::Notification held, released;
  ASSERT_TRUE(context_->prepare_pool().Post([&] {
    held.Notify();
    released.WaitForNotification();
  }));
  held.WaitForNotification();
  std::string pages;
  while (pages.size() < 20 * 1024) pages += "once upon a time ";
  EXPECT_EQ(Post("/v1/completions", CompletionBody(pages)).status, 200);
  released.Notify();

  HttpClient huge(port());
  huge.SendPost("/v1/completions", CompletionBody(std::string((8 << 20) - 1024, 'a')).dump());
  EXPECT_EQ(Post("/v1/completions", CompletionBody(pages)).status, 200);
  const HttpReply reply = huge.ReadReply();  // within the client's 10 s
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(Json::parse(reply.body)["error"]["code"], "context_length_exceeded");
}

TEST_F(PreparePoolTest, WaitingBytesAreBounded) {
  Json body = CompletionBody("short");
  body["metadata"] = {{"padding", std::string(kMaxQueuedBytes, 'a')}};
  HttpClient first(port()), second(port());
  // Whichever is read first waits, for alone it may be larger than the bound; the other is refused.
  first.SendPost("/v1/completions", body.dump());
  second.SendPost("/v1/completions", body.dump());
  EXPECT_TRUE(
      WaitForMetric("sluice_http_requests_total{code=\"429\",route=\"/v1/completions\"}", "1"));
  Release();
  EXPECT_EQ(first.ReadReply().status + second.ReadReply().status, 200 + 429);
}

TEST_F(PreparePoolTest, GrpcClientsThatLeaveCostNoTokenizing) {
  auto server = StartGrpcServer(GrpcOptions(), context_.get());
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::Generation::NewStub(grpc::CreateChannel(
      absl::StrCat("127.0.0.1:", (*server)->port()), grpc::InsecureChannelCredentials()));
  v1::GenerateRequest request;
  request.set_text(LongPrompt());
  request.mutable_sampling()->set_max_tokens(8);
  const auto generate = [&](grpc::ClientContext* rpc) {
    rpc->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    return stub->Generate(rpc, request);
  };

  grpc::ClientContext stays;
  const auto answer = generate(&stays);
  for (int i = 1; i < kNumRequests; ++i) {
    grpc::ClientContext leaves;
    const auto reader = generate(&leaves);
    EXPECT_TRUE(WaitForMetric("sluice_streams{api=\"grpc\"}", absl::StrCat(1 + i)));
    leaves.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
    EXPECT_TRUE(WaitForMetric(kGone, absl::StrCat(i)));
  }
  Release();
  v1::GenerateResponse response;
  while (answer->Read(&response)) {
  }
  EXPECT_TRUE(answer->Finish().ok());
  EXPECT_EQ(EncodedBytes(), kPromptBytes);
}

}  // namespace
}  // namespace sluice::router
