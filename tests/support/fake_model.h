// A model whose logits are a pure function of the sequence's tokens as read back from the KV
// blocks: Forward writes each token's id into its row, and computes logits from the rows of
// positions 0..p through the block table. A wrong table, a block freed too early or one that
// somebody else wrote gives other tokens than OracleLogits. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/block_hash.h"
#include "common/ids.h"
#include "engine/device/thread_pool.h"
#include "engine/kv/kv_store.h"
#include "engine/model/model.h"

namespace sluice::testing {

inline constexpr int kFakeVocabSize = 61;
inline constexpr int64_t kFakeNumLayers = 2;

// [num_layers][block_tokens][16 bytes]: token id, position and layer in each row.
KvLayout FakeKvLayout();
ModelSpec FakeModelSpec(int64_t max_position_embeddings);

// The row that token `token` at `position` leaves in every layer.
void WriteFakeKv(const KvStore& kv_store, absl::Span<const BlockId> block_table, int position,
                 TokenId token);
// Whether that row is there, in every layer.
bool HasFakeKv(const KvStore& kv_store, absl::Span<const BlockId> block_table, int position,
               TokenId token);

// What the fake model answers after `tokens`. [kFakeVocabSize]
std::vector<float> OracleLogits(absl::Span<const TokenId> tokens);
// The same, token by token.
class OracleSequence {
 public:
  void Append(TokenId token);
  std::vector<float> Logits() const;

 private:
  uint64_t state_ = 0;
  int num_tokens_ = 0;
};

class FakeModel : public Model {
 public:
  // `num_threads` that it lends.
  FakeModel(const KvStore* kv_store, int64_t max_position_embeddings, int num_threads = 1);

  void Forward(absl::Span<const SequenceSlice> slices, absl::Span<float> logits) override;
  int num_workers() const override { return pool_.num_threads(); }
  void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn) override {
    pool_.ParallelFor(num_tasks, fn);
  }
  const ModelSpec& spec() const override { return spec_; }

  int64_t num_computed_tokens() const { return num_computed_tokens_; }
  // After this token every logit is NaN, as in a broken model. -1: never.
  void set_poison_token(TokenId token) { poison_token_ = token; }
  // Called at the start of each Forward, on the engine thread; may block it.
  void set_before_forward(std::function<void()> hook) { before_forward_ = std::move(hook); }

 private:
  const KvStore* const kv_store_;
  const ModelSpec spec_;
  ThreadPool pool_;
  int64_t num_computed_tokens_ = 0;
  TokenId poison_token_ = -1;
  std::function<void()> before_forward_;
};

}  // namespace sluice::testing
