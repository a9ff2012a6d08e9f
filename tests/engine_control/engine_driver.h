// Drives real engines in tests: random requests, answers collected, and a prefill and a decode
// engine with memcpy in place of the network.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/engine.h"
#include "tests/support/fake_engine.h"

namespace sluice::testing {

using Answers = std::map<SequenceKey, Answer>;

std::string ModelDir(const std::string& name);  // "deepseek-tiny", or one of tests/golden/data

// Loads the model; aborts with the error if that fails.
std::unique_ptr<Engine> LoadEngine(const EngineOptions& options);

// A function of the seed: prompts of 1 to max_prompt tokens, some with a common beginning, some
// with output already there; all kinds of sampling.
std::vector<SequenceInput> RandomRequests(uint64_t seed, int count, int max_prompt, int max_output,
                                          int64_t vocab_size);

// Runs them all together. `alone`: one after the other instead.
Answers RunAll(Engine* engine, const std::vector<SequenceInput>& inputs, bool alone = false);

struct HandoffStats {
  int64_t copied_blocks = 0;
  int64_t cached_tokens = 0;  // at the decode engine
  int abandoned = 0;
  int preempted = 0;
};
// Runs them all through `prefill` and `decode`. Every `abandon_every`-th reservation (0: none) is
// given up after its second chunk, and planned anew.
Answers RunDisaggregated(Engine* prefill, Engine* decode, const std::vector<SequenceInput>& inputs,
                         int abandon_every, HandoffStats* stats);

// "" when equal bit for bit, else the first difference. Keys are compared by request.
std::string Difference(const Answers& actual, const Answers& expected);

}  // namespace sluice::testing
