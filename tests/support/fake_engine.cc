#include "tests/support/fake_engine.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"

namespace sluice {

bool operator==(const TokenLogprob& a, const TokenLogprob& b) {
  return a.token == b.token &&
         std::bit_cast<uint32_t>(a.logprob) == std::bit_cast<uint32_t>(b.logprob);
}

bool operator==(const SampledToken& a, const SampledToken& b) {
  return a.token == b.token &&
         std::bit_cast<uint32_t>(a.logprob) == std::bit_cast<uint32_t>(b.logprob) && a.top == b.top;
}

}  // namespace sluice

namespace sluice::testing {

FakeEngine MakeFakeEngine(const SchedulerOptions& scheduler, int64_t num_blocks, int num_threads) {
  absl::StatusOr<std::unique_ptr<KvStore>> kv_store = KvStore::Create(FakeKvLayout(), num_blocks);
  if (!kv_store.ok()) std::abort();
  auto model = std::make_unique<FakeModel>(kv_store->get(), scheduler.max_model_len, num_threads);
  FakeEngine fake;
  fake.kv_store = kv_store->get();
  fake.model = model.get();
  EngineParts parts;
  parts.kv_store = *std::move(kv_store);
  parts.model = std::move(model);
  parts.scheduler = scheduler;
  parts.fingerprint = {"fake fingerprint of thirty-two b.", "fake"};
  parts.isa = "fake";
  fake.engine = std::make_unique<EngineImpl>(std::move(parts));
  return fake;
}

SequenceKey MakeKey(uint64_t request, uint32_t attempt) {
  SequenceKey key;
  std::memcpy(key.request.bytes.data(), &request, sizeof(request));
  key.attempt = Attempt(attempt);
  return key;
}

std::vector<TokenId> MakeTokens(uint64_t seed, int count, int vocab_size) {
  std::mt19937_64 random(seed);
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  for (TokenId& token : tokens) {
    token = static_cast<TokenId>(random() % static_cast<uint64_t>(vocab_size));
  }
  return tokens;
}

Answer OracleAnswer(const SequenceInput& input, int max_model_len) {
  Sampler sampler(kFakeVocabSize, kFakeVocabSize);
  TokenCounts counts(input.tokens, input.num_output_tokens);
  OracleSequence sequence;
  for (TokenId token : input.tokens) sequence.Append(token);
  int num_tokens = static_cast<int>(input.tokens.size());
  Answer answer;
  for (int index = input.num_output_tokens;; ++index) {
    absl::StatusOr<SampledToken> sampled =
        sampler.Sample(sequence.Logits(), input.sampling, &counts, index);
    if (!sampled.ok()) std::abort();
    answer.tokens.push_back(*sampled);
    sequence.Append(sampled->token);
    ++num_tokens;
    counts.AddOutput(sampled->token);
    const std::vector<TokenId>& stops = input.sampling.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), sampled->token) != stops.end()) {
      answer.reason = EndReason::kStop;
      return answer;
    }
    if (index + 1 >= input.sampling.max_tokens || num_tokens >= max_model_len) {
      answer.reason = EndReason::kLength;
      return answer;
    }
  }
}

bool operator==(const Answer& a, const Answer& b) {
  return a.reason == b.reason && a.tokens == b.tokens;
}

std::string ToString(const Answer& answer) {
  std::string text = absl::StrCat("reason ", static_cast<int>(answer.reason), ":");
  for (const SampledToken& token : answer.tokens) absl::StrAppend(&text, " ", token.token);
  return text;
}

}  // namespace sluice::testing
