#include "cli/chat_client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/server_address.h"
#include "common/clock.h"
#include "services/rpc/grpc_options.h"

namespace sluice::cli {

namespace {

// A cancelled answer has no usage message; its tokens are counted as they come.
v1::ChatRequest WithTokenIds(v1::ChatRequest request) {
  request.set_return_token_ids(true);
  return request;
}

}  // namespace

double AnswerStats::tokens_per_second() const {
  constexpr double kMinSeconds = 0.02;
  const double seconds = total_seconds - time_to_first_token_seconds;
  return num_tokens > 1 && seconds >= kMinSeconds ? (num_tokens - 1) / seconds : 0;
}

ChatClient::ChatClient(std::string address, v1::ChatRequest defaults, absl::Duration timeout)
    : address_(std::move(address)),
      stub_(v1::Generation::NewStub(rpc::MakeChannel(address_))),
      timeout_(timeout),
      beginning_(WithTokenIds(std::move(defaults))),
      conversation_(beginning_) {}

absl::StatusOr<AnswerStats> ChatClient::Ask(const std::string& question, const Sink& sink) {
  v1::ChatMessage* const user = conversation_.add_messages();
  user->set_role("user");
  user->set_content(question);

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout_));
  {
    absl::MutexLock lock(&mu_);
    running_ = &context;
    cancelled_ = false;
  }
  const absl::Time begin = MonotonicNow();
  AnswerStats stats;
  v1::ChatMessage answer;
  answer.set_role("assistant");
  const std::unique_ptr<grpc::ClientReader<v1::ChatResponse>> reader =
      stub_->Chat(&context, conversation_);
  v1::ChatResponse response;
  while (reader->Read(&response)) {
    const bool has_output = !response.text_delta().empty() || !response.reasoning_delta().empty();
    if (has_output && stats.time_to_first_token_seconds == 0) {
      stats.time_to_first_token_seconds = absl::ToDoubleSeconds(MonotonicNow() - begin);
    }
    if (!response.reasoning_delta().empty()) {
      answer.mutable_reasoning_content()->append(response.reasoning_delta());
      sink.on_reasoning(response.reasoning_delta());
    }
    if (!response.text_delta().empty()) {
      answer.mutable_content()->append(response.text_delta());
      sink.on_text(response.text_delta());
    }
    if (response.finished() != v1::FINISH_REASON_UNSPECIFIED) stats.finished = response.finished();
    stats.num_tokens += response.token_ids_size();
    if (response.has_usage()) stats.num_tokens = response.usage().completion_tokens();
  }
  const grpc::Status status = reader->Finish();
  const bool is_cancelled = status.error_code() == grpc::StatusCode::CANCELLED;
  {
    absl::MutexLock lock(&mu_);
    running_ = nullptr;
    stats.cancelled = is_cancelled && cancelled_;
  }
  stats.total_seconds = absl::ToDoubleSeconds(MonotonicNow() - begin);
  if (!status.ok() && !stats.cancelled) {
    conversation_.mutable_messages()->RemoveLast();
    if (is_cancelled) {  // gRPC's word for a stream that is reset
      return absl::CancelledError(
          absl::StrCat(address_,
                       ": the server cut the answer off; it does so when a client takes "
                       "what it sends too slowly"));
    }
    return ExplainRpcError(status, context, address_);
  }
  if (answer.content().empty() && answer.reasoning_content().empty()) {
    conversation_.mutable_messages()->RemoveLast();
  } else {
    *conversation_.add_messages() = std::move(answer);
  }
  return stats;
}

bool ChatClient::Cancel() {
  absl::MutexLock lock(&mu_);
  if (running_ == nullptr) return false;
  running_->TryCancel();
  cancelled_ = true;
  return true;
}

void ChatClient::Reset() { conversation_ = beginning_; }

}  // namespace sluice::cli
