// Drives a Model directly, as the engine would: sequences with block tables over one KvStore.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/kv/kv_store.h"
#include "engine/model/deepseek_model.h"

namespace sluice {

std::string GoldenDir(const std::string& name);  // tests/golden/data/<name>
std::string TinyModelDir();                      // models/deepseek-tiny

struct LoadedModel {
  ModelSpec spec;
  std::string kernel_family;
  std::unique_ptr<KvStore> kv;
  std::unique_ptr<Model> model;  // refers to kv
};
// Fails the test and returns nulls on error.
LoadedModel LoadModelForTest(const std::string& dir, DType dtype, const std::string& isa,
                             int num_threads, int64_t num_blocks);

// One sequence: its tokens, how many of them are in the cache, and its blocks.
struct TestSequence {
  std::vector<TokenId> tokens;
  int computed = 0;
  std::vector<BlockId> blocks;

  // The next `count` tokens, with logits of the last `logit_rows`.
  SequenceSlice Slice(int count, int logit_rows) const;
};

// A sequence whose blocks are first, first + 1, ...; room for `max_tokens`.
TestSequence MakeSequence(std::vector<TokenId> tokens, int max_tokens, int first_block = 0);

// Runs all remaining tokens in one slice; logits of every one of them, [tokens][vocab].
std::vector<std::vector<float>> RunAllLogits(LoadedModel& loaded, TestSequence& sequence);

struct GreedyStep {
  TokenId token;
  float gap;  // best logit minus second best
};
// Prefills what is not computed yet, then appends `count` greedy tokens; does not stop at the end
// of sequence, as the references do not.
std::vector<GreedyStep> Greedy(LoadedModel& loaded, TestSequence& sequence, int count);

}  // namespace sluice
