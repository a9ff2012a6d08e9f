// The gRPC front's one thread and its queue: what is too much for them is refused or cut off, and
// nothing waits for a turn that never comes.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "services/router/grpc/generation_service.h"
#include "sluice/v1/generation.grpc.pb.h"
#include "tests/router_api/api_fixture.h"

namespace sluice::router {
namespace {

constexpr int kFrontTasks = 4;

// A server with a tiny front queue, whose thread a test can hold.
class GrpcFrontTest : public ApiFixture {
 protected:
  GrpcFrontTest() : service_(&shared_) {
    shared_.options.max_streams = 1;
    shared_.context = context_.get();
    shared_.front = std::make_unique<TaskPool>("front", 1, kFrontTasks);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = v1::Generation::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
    dispatcher_.SetCrowded();
  }
  ~GrpcFrontTest() override {
    Release();
    server_->Shutdown(std::chrono::system_clock::now());
    shared_.prepares.AwaitZero(absl::InfiniteDuration());
    shared_.streams.AwaitZero(absl::InfiniteDuration());
  }

  void HoldFront() {
    ASSERT_TRUE(shared_.front->Post([this] {
      held_.Notify();
      released_.WaitForNotification();
    }));
    held_.WaitForNotification();
  }
  void Release() {
    if (!released_.HasBeenNotified()) released_.Notify();
  }
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> Generate(grpc::ClientContext* rpc) {
    rpc->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::GenerateRequest request;
    request.set_text("Go");
    request.mutable_sampling()->set_max_tokens(64);
    return stub_->Generate(rpc, request);
  }

  GrpcServerShared shared_;
  GenerationService service_;
  absl::Notification held_, released_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Generation::Stub> stub_;
};

TEST_F(GrpcFrontTest, AStreamWhoseEventsFindNoPlaceIsCutOff) {
  grpc::ClientContext rpc;
  const auto reader = Generate(&rpc);
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("some"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));

  HoldFront();
  while (shared_.front->Post([] {})) {
  }
  generation.Tokens(Ids("more"));
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(10)));
}

TEST_F(GrpcFrontTest, AStreamThatCannotStartIsRefused) {
  HoldFront();
  while (shared_.front->Post([] {})) {
  }
  grpc::ClientContext rpc;
  const auto reader = Generate(&rpc);
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcFrontTest, RefusedStreamsTakeNoPlaceOfAcceptedOnes) {
  grpc::ClientContext rpc;
  const auto reader = Generate(&rpc);
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("some"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));

  HoldFront();
  for (int i = 0; i < 2 * kFrontTasks; ++i) {
    grpc::ClientContext other;
    const auto refused = Generate(&other);
    EXPECT_FALSE(refused->Read(&response));
    EXPECT_EQ(refused->Finish().error_code(), grpc::RESOURCE_EXHAUSTED);
    EXPECT_EQ(other.GetServerTrailingMetadata().count("sluice-error-code"), 1u);
  }
  // The server is done with them a little later than their clients are.
  for (int i = 0; i < 1000 && shared_.streams.Get() > 1; ++i)
    absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(shared_.streams.Get(), 1);

  generation.Tokens(Ids(" more"));
  generation.End(GenerationEnd::kStop);
  Release();
  std::string rest;
  while (reader->Read(&response)) rest += response.text_delta();
  EXPECT_EQ(rest, " more");
  EXPECT_TRUE(reader->Finish().ok());
}

}  // namespace
}  // namespace sluice::router
