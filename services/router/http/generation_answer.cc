#include "services/router/http/generation_answer.h"

namespace sluice::router {

void GenerationAnswer::Start(ApiContext* context, HttpExchange* exchange, GenerationPlan plan,
                             FormatOptions format) {
  std::unique_ptr<GenerationAnswer> answer(new GenerationAnswer(exchange, std::move(format)));
  // Nothing is written before this returns: events come through the executor.
  answer->call_ =
      GenerationCall::Start(context, std::move(plan), answer.get(), exchange->Executor());
  answer->formatter_ = std::make_unique<OpenAiFormatter>(context->tokenizer(),
                                                         answer->call_->plan(), answer->format_);
  exchange->SetPending(std::move(answer));
}

void GenerationAnswer::OnClientGone() { call_->Cancel(); }

void GenerationAnswer::OnDelta(const ChoiceDelta& delta) {
  if (!format_.stream.stream) {
    formatter_->Collect(delta);
    return;
  }
  if (!streaming_) {
    streaming_ = true;
    exchange_->StartStream();
  }
  const std::string chunk = formatter_->Chunk(delta);
  delta.first ? exchange_->SendOpeningEvent(chunk) : exchange_->SendEvent(chunk);
}

void GenerationAnswer::OnComplete(const RequestSummary& summary) {
  if (!format_.stream.stream) {
    exchange_->Respond(200, kJsonContentType, formatter_->Full(summary), {});
    return;
  }
  if (format_.stream.include_usage || format_.stream.include_timings)
    exchange_->SendEvent(formatter_->UsageChunk(summary));
  exchange_->SendEvent("[DONE]");
  exchange_->EndStream(/*close=*/false);
}

void GenerationAnswer::OnError(const ApiError& error) {
  if (!streaming_) {
    RespondError(exchange_, error);
    return;
  }
  // After 200 the error can only be an event; clients that miss it see a closed connection.
  exchange_->SendEvent(FormatError(error));
  exchange_->SendEvent("[DONE]");
  exchange_->EndStream(/*close=*/true);
}

}  // namespace sluice::router
