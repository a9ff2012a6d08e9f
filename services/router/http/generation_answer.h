// Answers one chat or completion request over HTTP: as one JSON body, or as a stream of events. The
// status line waits for the first token, so that a refusal or an early failure has its own status.
#pragma once

#include <memory>
#include <utility>

#include "services/router/api/api_context.h"
#include "services/router/api/generation_call.h"
#include "services/router/http/http_exchange.h"
#include "services/router/http/openai_format.h"

namespace sluice::router {

class GenerationAnswer : public PendingAnswer, public ResponseWriter {
 public:
  // Submits the plan; the answer is owned by `exchange` from then on.
  static void Start(ApiContext* context, HttpExchange* exchange, GenerationPlan plan,
                    FormatOptions format);

  void OnClientGone() override;
  void OnDelta(const ChoiceDelta& delta) override;
  void OnComplete(const RequestSummary& summary) override;
  void OnError(const ApiError& error) override;

 private:
  GenerationAnswer(HttpExchange* exchange, FormatOptions format)
      : exchange_(exchange), format_(std::move(format)) {}

  HttpExchange* const exchange_;  // outlives this
  const FormatOptions format_;
  std::shared_ptr<GenerationCall> call_;
  std::unique_ptr<OpenAiFormatter> formatter_;  // refers to call_'s plan
  bool streaming_ = false;                      // the status line went out
};

}  // namespace sluice::router
