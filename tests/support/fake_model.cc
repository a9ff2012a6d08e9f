#include "tests/support/fake_model.h"

#include <cstring>
#include <limits>

namespace sluice::testing {
namespace {

struct FakeRow {
  int32_t token;
  int32_t position;
  int32_t layer;
  int32_t check;
};

constexpr int32_t kCheck = 0x51u << 16 | 0x1ce;

FakeRow* Row(const KvStore& kv_store, absl::Span<const BlockId> block_table, int position,
             int64_t layer) {
  const BlockId block = block_table[static_cast<size_t>(position / kBlockTokens)];
  return reinterpret_cast<FakeRow*>(kv_store.Layer(block, layer)) + position % kBlockTokens;
}

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

uint64_t Extend(uint64_t state, const FakeRow& row) {
  state = Mix(state ^ static_cast<uint32_t>(row.token));
  state = Mix(state ^ static_cast<uint32_t>(row.position));
  return Mix(state ^ static_cast<uint32_t>(row.layer) ^ static_cast<uint32_t>(row.check));
}

void FillLogits(uint64_t state, absl::Span<float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    const uint64_t bits = Mix(state + i);
    logits[i] = static_cast<float>(bits >> 40) * (8.0f / (1 << 24)) - 4.0f;
  }
}

}  // namespace

KvLayout FakeKvLayout() {
  KvLayout layout;
  layout.block_tokens = kBlockTokens;
  layout.groups = {{"latent", kFakeNumLayers, sizeof(FakeRow)}};
  return layout;
}

ModelSpec FakeModelSpec(int64_t max_position_embeddings) {
  ModelSpec spec;
  spec.architecture_name = "Fake";
  spec.vocab_size = kFakeVocabSize;
  spec.num_hidden_layers = kFakeNumLayers;
  spec.max_position_embeddings = max_position_embeddings;
  return spec;
}

void WriteFakeKv(const KvStore& kv_store, absl::Span<const BlockId> block_table, int position,
                 TokenId token) {
  for (int64_t layer = 0; layer < kFakeNumLayers; ++layer) {
    *Row(kv_store, block_table, position, layer) = {token, position, static_cast<int32_t>(layer),
                                                    kCheck};
  }
}

bool HasFakeKv(const KvStore& kv_store, absl::Span<const BlockId> block_table, int position,
               TokenId token) {
  for (int64_t layer = 0; layer < kFakeNumLayers; ++layer) {
    const FakeRow& row = *Row(kv_store, block_table, position, layer);
    if (row.token != token || row.position != position || row.layer != layer ||
        row.check != kCheck) {
      return false;
    }
  }
  return true;
}

void OracleSequence::Append(TokenId token) {
  for (int64_t layer = 0; layer < kFakeNumLayers; ++layer) {
    state_ = Extend(state_, {token, num_tokens_, static_cast<int32_t>(layer), kCheck});
  }
  ++num_tokens_;
}

std::vector<float> OracleSequence::Logits() const {
  std::vector<float> logits(kFakeVocabSize);
  FillLogits(state_, absl::MakeSpan(logits));
  return logits;
}

std::vector<float> OracleLogits(absl::Span<const TokenId> tokens) {
  OracleSequence sequence;
  for (TokenId token : tokens) sequence.Append(token);
  return sequence.Logits();
}

FakeModel::FakeModel(const KvStore* kv_store, int64_t max_position_embeddings, int num_threads)
    : kv_store_(kv_store), spec_(FakeModelSpec(max_position_embeddings)), pool_(num_threads) {}

void FakeModel::Forward(absl::Span<const SequenceSlice> slices, absl::Span<float> logits) {
  if (before_forward_) before_forward_();
  // All writes first: the slices are one batch, and none may depend on another's order.
  for (const SequenceSlice& slice : slices) {
    for (size_t i = 0; i < slice.tokens.size(); ++i) {
      WriteFakeKv(*kv_store_, slice.block_table, slice.start_position + static_cast<int>(i),
                  slice.tokens[i]);
    }
    num_computed_tokens_ += static_cast<int64_t>(slice.tokens.size());
  }
  for (const SequenceSlice& slice : slices) {
    const int end = slice.start_position + static_cast<int>(slice.tokens.size());
    for (int row = 0; row < slice.num_logit_rows; ++row) {
      const int last = end - slice.num_logit_rows + row;
      uint64_t state = 0;
      for (int position = 0; position <= last; ++position) {
        for (int64_t layer = 0; layer < kFakeNumLayers; ++layer) {
          state = Extend(state, *Row(*kv_store_, slice.block_table, position, layer));
        }
      }
      FillLogits(state, logits.first(kFakeVocabSize));
      if (Row(*kv_store_, slice.block_table, last, 0)->token == poison_token_) {
        logits[0] = std::numeric_limits<float>::quiet_NaN();
      }
      logits.remove_prefix(kFakeVocabSize);
    }
  }
}

}  // namespace sluice::testing
