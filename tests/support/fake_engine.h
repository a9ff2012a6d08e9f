// An EngineImpl over FakeModel, and the oracle that says what it must produce: each sequence run
// alone, without blocks, batches or a scheduler.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/engine_impl.h"
#include "tests/support/fake_model.h"

namespace sluice::testing {

struct FakeEngine {
  std::unique_ptr<EngineImpl> engine;
  const KvStore* kv_store = nullptr;  // the engine's
  FakeModel* model = nullptr;         // the engine's
};

// scheduler.max_model_len must be set.
FakeEngine MakeFakeEngine(const SchedulerOptions& scheduler, int64_t num_blocks,
                          int num_threads = 1);

// Key of the request with this number.
SequenceKey MakeKey(uint64_t request, uint32_t attempt = 1);

// `count` tokens, a function of the seed.
std::vector<TokenId> MakeTokens(uint64_t seed, int count, int vocab_size = kFakeVocabSize);

struct Answer {
  std::vector<SampledToken> tokens;  // from index input.num_output_tokens on
  EndReason reason = EndReason::kLength;
};

Answer OracleAnswer(const SequenceInput& input, int max_model_len);

bool operator==(const Answer& a, const Answer& b);
std::string ToString(const Answer& answer);

}  // namespace sluice::testing

namespace sluice {
bool operator==(const TokenLogprob& a, const TokenLogprob& b);
bool operator==(const SampledToken& a, const SampledToken& b);  // bit for bit
}  // namespace sluice
