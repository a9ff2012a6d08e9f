// The gRPC client of `sluice bench`: which of a stream's messages it takes for tokens.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/loadgen/target.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::loadgen {
namespace {

v1::GenerateResponse Message(const std::string& text, v1::FinishReason finished) {
  v1::GenerateResponse message;
  message.set_text_delta(text);
  message.set_finished(finished);
  return message;
}

// Each answer is the same script, and usage at the end.
class ScriptedService final : public v1::Generation::Service {
 public:
  explicit ScriptedService(std::vector<v1::GenerateResponse> script) : script_(std::move(script)) {}
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest*,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    for (const v1::GenerateResponse& message : script_) writer->Write(message);
    v1::GenerateResponse usage;
    usage.mutable_usage()->set_completion_tokens(2);
    writer->Write(usage);
    return grpc::Status::OK;
  }

 private:
  const std::vector<v1::GenerateResponse> script_;
};

RequestRecord Ask(std::vector<v1::GenerateResponse> script) {
  ScriptedService service(std::move(script));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto targets = GrpcTargets(absl::StrCat("127.0.0.1:", port), "m");
  if (!targets.ok()) return {.status = targets.status()};
  return (*targets)()->Run({.prompt = {1}, .max_tokens = 2}, absl::Seconds(10));
}

TEST(GrpcTarget, OnlyMessagesWithTokensHaveGaps) {
  constexpr v1::FinishReason kNone = v1::FINISH_REASON_UNSPECIFIED;
  constexpr v1::FinishReason kLength = v1::FINISH_REASON_LENGTH;
  const std::vector<std::pair<std::vector<v1::GenerateResponse>, size_t>> cases = {
      {{Message("a", kNone), Message("b", kLength)}, 1},
      {{Message("a", kNone), Message("b", kNone), Message("", kLength)}, 1},
      {{Message("", kNone), Message("b", kLength)}, 1},  // half a character
      {{Message("", kLength)}, 0},                       // its only token has no text
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    const RequestRecord record = Ask(cases[i].first);
    EXPECT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(record.gaps.size(), cases[i].second) << "case " << i;
    EXPECT_EQ(record.output_tokens, 2);
  }
}

TEST(GrpcTarget, UsageAloneIsNoAnswer) {
  EXPECT_EQ(Ask({}).status.code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace sluice::loadgen
