// One conversation with a cluster over sluice.v1.Generation/Chat. Ask runs on one thread; Cancel
// may be called from another.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::cli {

struct AnswerStats {
  int num_tokens = 0;
  double time_to_first_token_seconds = 0;  // as this client saw it
  double total_seconds = 0;
  bool cancelled = false;
  v1::FinishReason finished = v1::FINISH_REASON_UNSPECIFIED;

  // Of the tokens after the first; 0 if they came within 20 ms or are none: a client that was busy
  // finds them all at once, and what that would give says nothing.
  double tokens_per_second() const;
};

class ChatClient {
 public:
  // `defaults` holds model, sampling and thinking; its messages are the conversation's beginning.
  ChatClient(std::string address, v1::ChatRequest defaults, absl::Duration timeout);

  struct Sink {
    std::function<void(absl::string_view)> on_reasoning;
    std::function<void(absl::string_view)> on_text;
  };
  // Adds the question and its answer to the conversation; a cancelled answer stays as far as it
  // came, a failed one is taken out together with its question. CANCELLED: the server cut it off.
  absl::StatusOr<AnswerStats> Ask(const std::string& question, const Sink& sink);
  // Ends the answer that runs, if one does: true.
  bool Cancel();
  // Forgets everything but the system message.
  void Reset();

 private:
  const std::string address_;
  const std::unique_ptr<v1::Generation::Stub> stub_;
  const absl::Duration timeout_;  // of one answer
  const v1::ChatRequest beginning_;

  v1::ChatRequest conversation_;

  absl::Mutex mu_;
  grpc::ClientContext* running_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;  // by Cancel(): the answer that runs, or the last
};

}  // namespace sluice::cli
