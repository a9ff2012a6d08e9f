// The fronts' surroundings in a test: deepseek-tiny's tokenizer, a scripted dispatcher, metrics.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "services/router/api/api_context.h"
#include "tests/support/counting_tokenizer.h"
#include "tests/support/fake_dispatcher.h"

namespace sluice::router {

inline constexpr int kTestMaxModelLen = 512;

class ApiFixture : public testing::Test {
 protected:
  explicit ApiFixture(ApiOptions options = {}) {
    absl::StatusOr<ServedModel> model = LoadServedModel(SLUICE_SOURCE_DIR "/models/deepseek-tiny");
    if (!model.ok()) {
      ADD_FAILURE() << model.status();
      std::abort();
    }
    auto tokenizer = std::make_unique<CountingTokenizer>(std::move(model->tokenizer));
    tokenizer_ = tokenizer.get();
    model->tokenizer = std::move(tokenizer);
    model->chat_encoder = ChatEncoder::Create(*model->tokenizer).value();
    options.served_model_names = {"deepseek-tiny", "org/deepseek-tiny"};
    if (options.max_model_len == ApiOptions().max_model_len) {
      options.max_model_len = kTestMaxModelLen;
    }
    auto context =
        ApiContext::Create(std::move(options), *std::move(model), &dispatcher_, &registry_);
    if (!context.ok()) {
      ADD_FAILURE() << context.status();
      std::abort();
    }
    context_ = *std::move(context);
  }

  const Tokenizer& tokenizer() const { return context_->tokenizer(); }
  std::vector<TokenId> Ids(const std::string& text) const {
    return tokenizer().Encode(text, AddedTokens::kIgnore);
  }
  TokenId eos() const { return context_->model().eos_token_ids.front(); }
  // Each generation answers `text`, one token at a time, then its stop token.
  void AnswerWith(const std::string& text) {
    dispatcher_.SetScript(
        [ids = Ids(text), eos = eos()](const FakeDispatcher::Generation& generation) {
          for (TokenId id : ids) generation.Tokens({id});
          generation.Tokens({eos});
          generation.End(GenerationEnd::kStop, /*cached_tokens=*/2);
        });
  }
  std::string MetricsText() { return registry_.ExportText(); }

  // In order of dependence: the last is destroyed first.
  MetricsRegistry registry_;
  FakeDispatcher dispatcher_;
  std::unique_ptr<ApiContext> context_;
  const CountingTokenizer* tokenizer_ = nullptr;  // the context's
};

}  // namespace sluice::router
