// The engine over any Model: hands requests to the scheduler, runs its plans, samples, and says
// what came of it. Engine thread only, except BlockBytes (see engine.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/kv/block_manager.h"
#include "engine/kv/kv_prefault.h"
#include "engine/kv/kv_store.h"
#include "engine/model/model.h"
#include "engine/runtime/engine.h"
#include "engine/sampling/sampler.h"
#include "engine/sampling/token_counts.h"
#include "engine/scheduler/scheduler.h"

namespace sluice {

// What Engine::Create assembles, and a test can assemble differently.
struct EngineParts {
  std::unique_ptr<KvStore> kv_store;
  std::unique_ptr<KvPrefault> kv_prefault;  // of kv_store; may be null
  std::unique_ptr<Model> model;             // may refer to kv_store
  SchedulerOptions scheduler;               // max_model_len resolved
  KvFingerprint fingerprint;
  std::string isa;
  int64_t sampleable_vocab_size = 0;  // 0: all
};

class EngineImpl final : public Engine {
 public:
  // REQUIRES: parts.scheduler.Validate().ok() and max_model_len > 0.
  explicit EngineImpl(EngineParts parts);

  absl::Status AddPrefill(SequenceInput input) override;
  absl::Status AddRun(SequenceInput input) override;
  absl::StatusOr<Reservation> Reserve(SequenceInput input) override;
  absl::Status Activate(SequenceKey key, const SampledToken& first) override;
  void QuarantineReservation(SequenceKey key, int verified_tokens) override;
  void AbandonReservation(SequenceKey key, int verified_tokens) override;
  int CachedTokens(const SequenceInput& input) const override;
  absl::StatusOr<PrefixPin> PinPrefix(SequenceKey key, int begin, int end) override;
  void Unpin(PinId pin) override { scheduler_.Unpin(pin); }
  void Release(SequenceKey key) override;
  bool Cancel(SequenceKey key) override;

  StepResult Step() override;
  bool HasWork() const override;

  EngineLoad Load() const override;
  PrefixCacheChanges TakePrefixCacheChanges() override;
  std::vector<Holder> Holders() const override;
  absl::Span<uint8_t> BlockBytes(BlockId block) override { return kv_store_->Block(block); }

  const ModelSpec& spec() const override { return model_->spec(); }
  const KvLayout& layout() const override { return kv_store_->layout(); }
  const KvFingerprint& fingerprint() const override { return fingerprint_; }
  std::string isa() const override { return isa_; }
  int max_model_len() const override { return options_.max_model_len; }

  // For tests and debugging.
  const Scheduler& scheduler() const { return scheduler_; }
  absl::Status CheckIntegrity() const;

 private:
  absl::Status Validate(const SequenceInput& input) const;
  absl::Status Add(SequenceInput input, SequenceKind kind);

  void ComputeLogits(const StepPlan& plan);
  void ReportChunk(Sequence* sequence, StepResult* result);
  // Chooses a token for each row of logits, side by side on the model's threads.
  void SampleAll(const StepPlan& plan);
  void AppendSampled(Sequence* sequence, absl::StatusOr<SampledToken> sampled, StepResult* result);
  // Whether the sequence is complete after its last token.
  std::optional<EndReason> EndAfterLastToken(const Sequence& sequence) const;
  // Builds without NDEBUG (debug, asan, tsan): after every step and change of a reservation, each
  // block is in exactly one state.
  void AssertBlocksBalance() const;
  // Takes the sequence out of the engine.
  void Drop(Sequence* sequence);

  // Constant after construction.
  const SchedulerOptions options_;
  const KvFingerprint fingerprint_;
  const std::string isa_;
  const std::unique_ptr<KvStore> kv_store_;
  const std::unique_ptr<KvPrefault> kv_prefault_;
  const std::unique_ptr<Model> model_;
  const size_t vocab_size_;

  BlockManager blocks_;
  Scheduler scheduler_;
  std::vector<Sampler> samplers_;  // one a worker of the model: each has its own scratch
  absl::flat_hash_map<SequenceKey, TokenCounts> token_counts_;
#ifndef NDEBUG
  int64_t num_steps_ = 0;
#endif
  std::vector<SequenceEnded> ended_between_steps_;  // by Activate; reported by the next Step

  // Reused from step to step.
  std::vector<SequenceSlice> slices_;
  std::unique_ptr<float[]> logits_;  // [max_num_seqs, vocab_size]
  struct RowToSample {
    const Sequence* sequence;
    const TokenCounts* counts;  // may be null
    absl::StatusOr<SampledToken> sampled;
  };
  std::vector<RowToSample> rows_;  // one a row of logits
};

}  // namespace sluice
