// The engine of one worker: scheduler, block manager, sequences, model and sampler, stepped by its
// owner. One thread (the engine thread) calls everything here; nothing in it blocks on a network,
// reads a clock or takes a lock. Step() is deterministic: the same calls give the same bits.
//
// A sequence is named by (request, attempt). Life on each role:
//   prefill:  AddPrefill -> chunks (ChunkComputed ...) -> FirstToken, blocks stay pinned -> Release
//   decode:   Reserve (blocks belong to the transfer) -> Activate -> tokens -> Finished
//                                                 or -> AbandonReservation
//             PrefixPin lends the cached prefix of a reservation to a prefill worker.
//   prefill may begin with a Reserve too: the blocks of a prefix that it fetches, which it gives up
//   with AbandonReservation(tokens fetched) and then finds in its cache.
//   both:     AddRun -> tokens -> Finished
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/block_hash.h"
#include "common/ids.h"
#include "common/sampling_params.h"
#include "engine/kv/block_manager.h"
#include "engine/scheduler/scheduler_options.h"
#include "engine/scheduler/sequence.h"
#include "modelspec/kv_layout.h"
#include "modelspec/model_spec.h"

namespace sluice {

struct EngineOptions {
  std::string model_dir;
  DType dtype = DType::kBF16;
  std::string
      isa;  // "" or "auto": the best this processor has; "avx2", "avx512", "amx", "portable"
  int num_threads = 0;       // 0: all cores
  int compute_niceness = 0;  // of the threads that the engine starts; the caller sets its own
  uint64_t kv_cache_bytes =
      0;  // 0: sized from free memory (a modest share; at least one full sequence)
  int64_t num_kv_blocks = 0;  // overrides kv_cache_bytes
  // Only ids below this are sampled: a model's vocabulary may be padded beyond its tokenizer's. 0:
  // all. Part of the fingerprint.
  int64_t sampleable_vocab_size = 0;
  SchedulerOptions scheduler;
  // Holds the model folder against its manifest (engine/weights/manifest.h), if it has one.
  bool verify_weights = true;
  // Refuses to run when the engine does not answer as it should (answer_check.h).
  bool check_answers = true;
  // Progress of loading, 0..1; may be null.
  std::function<void(double)> on_load_progress;
};

// Tokens [begin, end) of the sequence's prompt have their KV in `blocks`; begin is a multiple of
// kBlockTokens, and so is end unless `last`. Blocks found in the prefix cache are reported too
// (first call), so a prefill worker can offer everything the decode worker lacks. Rows behind `end`
// in the last block are zero: they may have held another request's KV, and the block leaves here.
struct ChunkComputed {
  SequenceKey key;
  int begin = 0;
  int end = 0;
  bool last = false;
  std::vector<BlockId> blocks;
};

struct TokenProduced {
  SequenceKey key;
  int index = 0;  // of the answer, dense from 0, journalled tokens counted
  SampledToken token;
  int cached_tokens = 0;  // with the attempt's first token: prompt tokens not computed here
  bool first = false;     // of this attempt
};

enum class EndReason { kStop, kLength, kPreempted, kFailed };
struct SequenceEnded {
  SequenceKey key;
  EndReason reason = EndReason::kStop;
  absl::Status status;  // with kFailed
};

struct StepResult {
  int num_prefill_tokens = 0;
  int num_decode_tokens = 0;
  // AddPrefill and AddRun sequences whose first prompt tokens were computed in this step: their
  // time in the queue ended when the step began. (Named again when one starts over after
  // preemption.)
  std::vector<SequenceKey> started;
  std::vector<ChunkComputed> chunks;  // AddPrefill sequences only
  std::vector<TokenProduced> tokens;
  // Sequences that left the engine; a stopped decode sequence's blocks are already free or cached.
  // A prefill sequence does not leave by itself: after its first token, and also after kFailed, its
  // blocks stay pinned until Release or Cancel, since somebody may be reading them.
  std::vector<SequenceEnded> ended;
  bool idle = false;  // there was nothing to do, or nothing that can be done now
};

struct Reservation {
  int cached_tokens = 0;        // multiple of kBlockTokens; found in this worker's prefix cache
  std::vector<BlockId> blocks;  // to be filled: tokens [cached_tokens, tokens.size())
};

// Blocks of a reservation's cached prefix, held for the transfer thread to read.
struct PrefixPin {
  PinId id;
  std::vector<BlockId> blocks;
};

struct EngineLoad {
  int running = 0;
  int waiting = 0;
  int64_t queued_prefill_tokens = 0;
  int64_t num_preemptions = 0;  // since the start: handed back, or queued again to be recomputed
  BlockCounts blocks;
};

class Engine {
 public:
  virtual ~Engine() = default;

  // Loads and packs the weights; seconds. Errors name the file, tensor or field.
  // FAILED_PRECONDITION: the folder is not what its manifest describes; DATA_LOSS: the engine
  // computes something else than it should.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options);

  // RESOURCE_EXHAUSTED: the waiting queue is full, or the sequence can never fit the pool;
  // INVALID_ARGUMENT: empty, too long, a token outside the vocabulary; ALREADY_EXISTS: the key is
  // in use.
  virtual absl::Status AddPrefill(SequenceInput input) = 0;
  virtual absl::Status AddRun(SequenceInput input) = 0;

  // Takes blocks for all tokens (minus cached prefix) plus expected growth into account;
  // RESOURCE_EXHAUSTED when they do not fit now, beside the first waiting sequence. The blocks are
  // `receiving` until Activate or AbandonReservation.
  virtual absl::StatusOr<Reservation> Reserve(SequenceInput input) = 0;
  // All KV of the reservation is in place. `first` was sampled by the prefill worker with index
  // input.num_output_tokens and has been emitted there. May end at once (stop token, max_tokens):
  // returned in the next StepResult.
  virtual absl::Status Activate(SequenceKey key, const SampledToken& first) = 0;
  // The transfer is dead, but may still write behind the first `verified_tokens` tokens: their full
  // blocks can be found as prefix from now on, the others count as quarantined until
  // AbandonReservation. Optional, and may be repeated when more is known.
  virtual void QuarantineReservation(SequenceKey /*key*/, int /*verified_tokens*/) {}
  // REQUIRES: nothing writes to the blocks any more. The first `verified_tokens` tokens (rounded
  // down to blocks) hold good KV and become cached prefix.
  virtual void AbandonReservation(SequenceKey key, int verified_tokens) = 0;

  // Leading tokens of `input` that AddPrefill or Reserve would find in the prefix cache now.
  virtual int CachedTokens(const SequenceInput& input) const = 0;
  // Holds the blocks of tokens [begin, end) within a reservation's cached prefix, as `sending`,
  // until Unpin; neither Activate nor AbandonReservation ends it. NOT_FOUND: no such reservation;
  // INVALID_ARGUMENT: not whole blocks of the prefix.
  virtual absl::StatusOr<PrefixPin> PinPrefix(SequenceKey key, int begin, int end) = 0;
  // REQUIRES: nothing reads the blocks any more. Unknown pins are ignored.
  virtual void Unpin(PinId pin) = 0;

  // Unpins a prefill sequence after its blocks were taken over (or given up). Its full blocks stay
  // cached.
  virtual void Release(SequenceKey key) = 0;
  // Ends a sequence of any kind except a reservation, between steps; nothing more is reported for
  // it. REQUIRES, for a prefill sequence: nothing reads its blocks any more. False: unknown, or a
  // reservation.
  virtual bool Cancel(SequenceKey key) = 0;

  // One step: plan, compute, sample.
  virtual StepResult Step() = 0;
  // False when Step() has nothing to do until some other method is called: all done, or everything
  // that waits needs blocks that only Release, Cancel or AbandonReservation can free.
  virtual bool HasWork() const = 0;

  virtual EngineLoad Load() const = 0;
  virtual PrefixCacheChanges TakePrefixCacheChanges() = 0;
  // Who holds which blocks, for people and tests: key, state, number of blocks.
  static constexpr char kLentState[] = "lent";  // a PrefixPin's
  struct Holder {
    SequenceKey key;
    std::string state;  // of SequencePhaseName, or kLentState
    int num_blocks = 0;
  };
  virtual std::vector<Holder> Holders() const = 0;

  // A block's bytes (layout().block_bytes()), valid for the engine's life. Reading a pinned block
  // (of a prefill sequence or a PrefixPin), or writing a block of a reservation, is allowed from
  // the transfer thread.
  virtual absl::Span<uint8_t> BlockBytes(BlockId block) = 0;

  virtual const ModelSpec& spec() const = 0;
  virtual const KvLayout& layout() const = 0;
  virtual const KvFingerprint& fingerprint() const = 0;
  virtual std::string isa() const = 0;
  virtual int max_model_len() const = 0;
};

}  // namespace sluice
