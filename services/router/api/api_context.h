// Everything the two public fronts (HTTP and gRPC) share: the model as clients see it, limits, and
// the way to the dispatcher. One per router process, made in main, outlives both servers. Any
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "metrics/metrics.h"
#include "modelspec/model_spec.h"
#include "services/router/api/api_metrics.h"
#include "services/router/api/task_pool.h"
#include "services/router/core/dispatcher.h"
#include "tokenizer/chat_encoder.h"
#include "tokenizer/tokenizer.h"

namespace sluice::router {

struct ApiOptions {
  // Names clients may use; the first is the one answers carry. Required.
  std::vector<std::string> served_model_names;
  // Upper bound of prompt plus answer, in tokens. The smallest value of the ready workers lowers
  // it.
  int max_model_len = 4096;
  std::string version = "0.1.0";

  // Bounds of one request.
  int max_choices = 128;  // prompts times n
  // Requests without an own deadline end after this long.
  absl::Duration request_timeout = absl::Minutes(30);
  // Bodies above this size are parsed and tokenized on the pool, so that a long prompt does not
  // stall the streams of others.
  int64_t inline_prepare_bytes = 8 * 1024;
  int prepare_threads = 2;  // so that one prompt of megabytes does not hold up the others
  int prepare_queue_tasks = 256;
  int64_t prepare_queue_bytes = 256 * 1024 * 1024;  // of bodies, parsed or not
};

// What a checkpoint contributes; from its files, or made by hand in tests.
struct ServedModel {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatEncoder> chat_encoder;  // null: the chat endpoints answer 400
  GenerationDefaults defaults;
  std::vector<TokenId> eos_token_ids;  // stop tokens of every request, unless ignore_eos
};

// Reads tokenizer, chat format, generation defaults and stop tokens of a model folder.
absl::StatusOr<ServedModel> LoadServedModel(const std::string& model_dir);

class ApiContext {
 public:
  // `dispatcher` and `metrics` must outlive the context.
  static absl::StatusOr<std::unique_ptr<ApiContext>> Create(ApiOptions options, ServedModel model,
                                                            Dispatcher* dispatcher,
                                                            MetricsRegistry* metrics);

  const ApiOptions& options() const { return options_; }
  const Tokenizer& tokenizer() const { return *model_.tokenizer; }
  const ChatEncoder* chat_encoder() const { return model_.chat_encoder.get(); }
  const ServedModel& model() const { return model_; }
  const std::string& model_name() const { return options_.served_model_names.front(); }
  bool ServesModel(absl::string_view name) const;
  // Prompt plus answer, as of now (read from the cluster at most twice a second).
  int MaxModelLen() const;

  Dispatcher& dispatcher() const { return *dispatcher_; }
  MetricsRegistry* registry() const { return registry_; }
  ApiMetrics& metrics() const { return *metrics_; }
  TaskPool& prepare_pool() const { return *prepare_pool_; }
  int64_t created_unix_seconds() const { return created_unix_seconds_; }

 private:
  ApiContext(ApiOptions options, ServedModel model, Dispatcher* dispatcher,
             MetricsRegistry* registry);

  // Constant after construction.
  const ApiOptions options_;
  const ServedModel model_;
  Dispatcher* const dispatcher_;
  MetricsRegistry* const registry_;
  const std::unique_ptr<ApiMetrics> metrics_;
  const std::unique_ptr<TaskPool> prepare_pool_;
  const int64_t created_unix_seconds_;

  mutable absl::Mutex mu_;
  mutable absl::Time max_model_len_read_at_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  mutable int max_model_len_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace sluice::router
