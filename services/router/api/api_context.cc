#include "services/router/api/api_context.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "common/clock.h"
#include "common/status_macros.h"

namespace sluice::router {
namespace {

constexpr absl::Duration kMaxModelLenAge = absl::Milliseconds(500);

}  // namespace

absl::StatusOr<ServedModel> LoadServedModel(const std::string& model_dir) {
  ServedModel model;
  SLUICE_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Load(model_dir));
  absl::StatusOr<std::unique_ptr<ChatEncoder>> encoder = ChatEncoder::Create(*model.tokenizer);
  // A base model without a chat template is served for completions only; a template that is none of
  // ours is refused, because a wrong chat format fails silently.
  if (encoder.ok()) {
    model.chat_encoder = *std::move(encoder);
  } else if (!model.tokenizer->chat_template().empty()) {
    return Annotate(encoder.status(), model_dir);
  }
  SLUICE_ASSIGN_OR_RETURN(model.defaults, LoadGenerationDefaults(model_dir));
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(model_dir));
  for (int64_t id : spec.eos_token_ids) model.eos_token_ids.push_back(static_cast<TokenId>(id));
  if (model.eos_token_ids.empty() && model.tokenizer->eos_token_id().has_value()) {
    model.eos_token_ids.push_back(*model.tokenizer->eos_token_id());
  }
  return model;
}

absl::StatusOr<std::unique_ptr<ApiContext>> ApiContext::Create(ApiOptions options,
                                                               ServedModel model,
                                                               Dispatcher* dispatcher,
                                                               MetricsRegistry* metrics) {
  if (options.served_model_names.empty()) {
    return absl::InvalidArgumentError("at least one served model name is needed");
  }
  if (options.max_model_len < 2) {
    return absl::InvalidArgumentError("max_model_len must be at least 2");
  }
  if (options.prepare_threads < 1 || options.prepare_queue_tasks < 1) {
    return absl::InvalidArgumentError("prepare_threads and prepare_queue_tasks must be at least 1");
  }
  if (model.tokenizer == nullptr) return absl::InvalidArgumentError("a tokenizer is needed");
  return std::unique_ptr<ApiContext>(
      new ApiContext(std::move(options), std::move(model), dispatcher, metrics));
}

ApiContext::ApiContext(ApiOptions options, ServedModel model, Dispatcher* dispatcher,
                       MetricsRegistry* registry)
    : options_(std::move(options)),
      model_(std::move(model)),
      dispatcher_(dispatcher),
      registry_(registry),
      metrics_(std::make_unique<ApiMetrics>(registry)),
      prepare_pool_(std::make_unique<TaskPool>("router-prepare", options_.prepare_threads,
                                               options_.prepare_queue_tasks,
                                               options_.prepare_queue_bytes)),
      created_unix_seconds_(std::time(nullptr)) {}

bool ApiContext::ServesModel(absl::string_view name) const {
  return std::find(options_.served_model_names.begin(), options_.served_model_names.end(), name) !=
         options_.served_model_names.end();
}

int ApiContext::MaxModelLen() const {
  const absl::Time now = MonotonicNow();
  {
    absl::MutexLock lock(&mu_);
    if (now - max_model_len_read_at_ < kMaxModelLenAge) return max_model_len_;
  }
  // Outside the lock: the dispatcher takes its own.
  const int cluster = dispatcher_->Snapshot().max_model_len;
  absl::MutexLock lock(&mu_);
  max_model_len_read_at_ = now;
  max_model_len_ = cluster > 0 ? std::min(cluster, options_.max_model_len) : options_.max_model_len;
  return max_model_len_;
}

}  // namespace sluice::router
