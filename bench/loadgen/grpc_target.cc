#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "bench/loadgen/target.h"
#include "common/clock.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::loadgen {
namespace {

class GrpcTarget : public Target {
 public:
  GrpcTarget(std::shared_ptr<grpc::Channel> channel, std::string model)
      : stub_(v1::Generation::NewStub(channel)), model_(std::move(model)) {}

  RequestRecord Run(const PlannedRequest& planned, absl::Duration timeout) override {
    v1::GenerateRequest request;
    request.set_model(model_);
    request.mutable_token_ids()->mutable_ids()->Add(planned.prompt.begin(), planned.prompt.end());
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_tokens(planned.max_tokens);
    request.mutable_sampling()->set_ignore_eos(true);

    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
    RequestRecord record;
    record.first_token = absl::InfiniteFuture();
    record.sent = MonotonicNow();
    auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      const bool has_text = !response.text_delta().empty();
      const bool is_end = response.finished() != v1::FINISH_REASON_UNSPECIFIED;
      // The stream's last message has usage alone.
      if (has_text || is_end || !response.has_usage()) {
        CountEvent(MonotonicNow(), has_text, is_end, &record);
      }
      if (response.has_usage()) {
        record.prompt_tokens = response.usage().prompt_tokens();
        record.output_tokens = response.usage().completion_tokens();
        record.cached_tokens = response.usage().cached_tokens();
      }
    }
    const grpc::Status status = reader->Finish();
    if (!status.ok()) {
      record.status =
          absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
    } else if (record.first_token == absl::InfiniteFuture()) {
      record.status = absl::InternalError("the stream ended without a token");
    }
    return record;
  }

 private:
  const std::unique_ptr<v1::Generation::Stub> stub_;
  const std::string model_;
};

}  // namespace

absl::StatusOr<TargetFactory> GrpcTargets(const std::string& address, const std::string& model) {
  auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5))) {
    return absl::UnavailableError(absl::StrCat("nobody answers at ", address,
                                               " (is the cluster up? `sluice up` starts one)"));
  }
  return TargetFactory([channel, model] { return std::make_unique<GrpcTarget>(channel, model); });
}

}  // namespace sluice::loadgen
