// A body as a client may send it, to each of the endpoints that take one: refused as the client's
// mistake, or a plan that the dispatcher may get. Never an internal error.
#include <cmath>
#include <memory>
#include <string>

#include "common/check.h"
#include "metrics/metrics.h"
#include "services/router/api/error_table.h"
#include "services/router/api/plan.h"
#include "services/router/http/json_request.h"

namespace sluice::router {
namespace {

// Planning asks for the cluster's context length only.
class IdleDispatcher : public Dispatcher {
 public:
  void Submit(GenerationSpec, std::shared_ptr<GenerationSink>) override {}
  void Cancel(RequestId) override {}
  void Stop(RequestId) override {}
  ClusterSnapshot Snapshot() const override { return {}; }
  std::string NotReadyReason() const override { return ""; }
};

const ApiContext& Context() {
  static IdleDispatcher dispatcher;
  static MetricsRegistry registry;
  static const std::unique_ptr<ApiContext> context = [] {
    auto model = LoadServedModel(SLUICE_SOURCE_DIR "/models/deepseek-tiny");
    SLUICE_CHECK(model.ok());
    ApiOptions options;
    options.served_model_names = {"deepseek-tiny"};
    auto created = ApiContext::Create(options, *std::move(model), &dispatcher, &registry);
    SLUICE_CHECK(created.ok());
    return *std::move(created);
  }();
  return *context;
}

void CheckRefusal(const absl::Status& status) {
  const ApiError error = ToApiError(status);
  SLUICE_CHECK(error.row().http_status >= 400 && error.row().http_status < 500);
  SLUICE_CHECK(!error.message.empty());
}

void CheckPlan(const absl::StatusOr<GenerationPlan>& plan) {
  if (!plan.ok()) return CheckRefusal(plan.status());
  const TokenId vocab_size = Context().tokenizer().vocab_size();
  SLUICE_CHECK(!plan->prompts.empty() && plan->prompts.size() == plan->max_tokens.size());
  SLUICE_CHECK(plan->n >= 1 && plan->num_choices() <= Context().options().max_choices);
  for (size_t i = 0; i < plan->prompts.size(); ++i) {
    SLUICE_CHECK(!plan->prompts[i].empty());
    for (TokenId id : plan->prompts[i]) SLUICE_CHECK(id >= 0 && id < vocab_size);
    SLUICE_CHECK(plan->max_tokens[i] >= 1 && plan->sampling.min_tokens <= plan->max_tokens[i]);
    SLUICE_CHECK(static_cast<int64_t>(plan->prompts[i].size()) + plan->max_tokens[i] <=
                 Context().options().max_model_len);
  }
  const SamplingParams& sampling = plan->sampling;
  SLUICE_CHECK(sampling.temperature >= 0 && sampling.temperature <= 100);
  SLUICE_CHECK(sampling.top_p > 0 && sampling.top_p <= 1);
  SLUICE_CHECK(sampling.min_p >= 0 && sampling.min_p <= 1);
  SLUICE_CHECK(sampling.repetition_penalty > 0 && sampling.top_k >= 0 && sampling.min_tokens >= 0);
  for (const auto& [id, bias] : sampling.logit_bias) {
    SLUICE_CHECK(id >= 0 && id < vocab_size && std::isfinite(bias));
  }
  for (TokenId id : sampling.stop_token_ids) SLUICE_CHECK(id >= 0 && id < vocab_size);
}

void Fuzz(absl::string_view body) {
  if (const auto parsed = ParseCompletionBody(body); parsed.ok()) {
    CheckPlan(PlanCompletion(Context(), parsed->request));
  } else {
    CheckRefusal(parsed.status());
  }
  if (const auto parsed = ParseChatBody(body); parsed.ok()) {
    CheckPlan(PlanChat(Context(), parsed->request));
  } else {
    CheckRefusal(parsed.status());
  }
  if (const auto parsed = ParseTokenizeBody(body); parsed.ok()) {
    if (const auto ids = Tokenize(Context(), *parsed); !ids.ok()) CheckRefusal(ids.status());
  } else {
    CheckRefusal(parsed.status());
  }
  if (const auto parsed = ParseDetokenizeBody(body); parsed.ok()) {
    if (const auto text = Detokenize(Context(), *parsed); !text.ok()) CheckRefusal(text.status());
  } else {
    CheckRefusal(parsed.status());
  }
}

}  // namespace
}  // namespace sluice::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::router::Fuzz({reinterpret_cast<const char*>(data), size});
  return 0;
}
