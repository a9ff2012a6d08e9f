// One running request: submits its choices to the dispatcher, turns their tokens into deltas, and
// writes them to a front. Owned by the front's connection, lives in the front's turns (see
// CallExecutor); the dispatcher's turn only leaves events in an inbox, so a slow client or a long
// detokenization never holds it up.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/router/api/api_context.h"
#include "services/router/api/error_table.h"
#include "services/router/api/output_processor.h"
#include "services/router/api/plan.h"

namespace sluice::router {

struct RequestSummary {
  int64_t prompt_tokens = 0;      // each prompt once, whatever n is
  int64_t completion_tokens = 0;  // of all choices
  int64_t cached_tokens = 0;
  int64_t reasoning_tokens = 0;
  absl::Duration time_to_first_token;
  absl::Duration total;
  TimeStages stages;  // of the first choice
};

class GenerationCall;

// Where a call handles its events: in turns of its front's connection, one at a time. Any thread
// may use it.
class CallExecutor {
 public:
  virtual ~CallExecutor() = default;
  // In a turn on the front's thread, later; not at all if the call has gone by then.
  virtual void Post(std::weak_ptr<GenerationCall> call) = 0;
  // In a turn here and now, unless the connection is at work elsewhere: then false. Never waits.
  virtual bool TryRun(GenerationCall* call) = 0;
};

// What a front does with an answer. Called in the front's turns: OnDelta any number of times, then
// OnComplete or OnError once. Each choice has exactly one delta with a finish reason before
// OnComplete. May call GenerationCall::Cancel.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  virtual void OnDelta(const ChoiceDelta& delta) = 0;
  virtual void OnComplete(const RequestSummary& summary) = 0;
  virtual void OnError(const ApiError& error) = 0;
};

class GenerationCall : public std::enable_shared_from_this<GenerationCall> {
 public:
  // Submits everything. `context` and `writer` must outlive the call's activity: until OnComplete,
  // OnError or Cancel. An executor that has gone drops the events.
  static std::shared_ptr<GenerationCall> Start(ApiContext* context, GenerationPlan plan,
                                               ResponseWriter* writer,
                                               std::weak_ptr<CallExecutor> executor);
  ~GenerationCall();

  // Ends all choices; the writer hears nothing more. Idempotent; a no-op after the end.
  void Cancel();

  // For the executor.
  void HandleEvents();

  const GenerationPlan& plan() const { return plan_; }
  bool tokens_sent() const { return tokens_sent_; }

 private:
  class Inbox;
  class Sink;
  struct Choice;
  struct Event;
  struct Mail;

  GenerationCall(ApiContext* context, GenerationPlan plan, ResponseWriter* writer);
  void Submit(std::weak_ptr<CallExecutor> executor);
  void HandleTokens(int index, absl::Span<const SampledToken> tokens, ChoiceDelta* delta);
  // False when the choice failed; *error says how.
  bool HandleEnd(int index, const GenerationResult& result, ChoiceDelta* delta, ApiError* error);
  void WriteDelta(ChoiceDelta* delta);
  void CancelChoices();
  RequestSummary Summarize() const;

  ApiContext* const context_;
  const GenerationPlan plan_;

  // In the front's turns only.
  ResponseWriter* writer_;  // null once nothing more may be written
  std::vector<std::unique_ptr<Choice>> choices_;
  int num_running_ = 0;
  bool tokens_sent_ = false;
  absl::Time submitted_at_ = absl::InfinitePast();
  absl::Time first_token_at_ = absl::InfinitePast();  // left the dispatcher
  absl::Time first_delta_at_ = absl::InfinitePast();  // was written

  const std::unique_ptr<Mail> mail_;  // being handled; kept for its memory

  const std::shared_ptr<Inbox> inbox_;
};

}  // namespace sluice::router
