// Decides what each step computes and who holds which blocks. Pure of device and clock: time is
// counted in steps, and the same calls give the same plans. Owner: the engine; engine thread only.
//
// A step runs every decoding sequence (one token each), then prefill chunks in the order of
// prefill_order.h up to max_num_batched_tokens, fewer where contexts are long (step_work.h). A
// waiting sequence is admitted only when blocks for all its tokens are there at once, so
// half-computed prompts never wait for each other's blocks; if the first in order does not fit,
// nobody behind it is admitted, so large prompts are not starved of blocks by small ones.
//
// When a decoding sequence needs a block and there is none, the youngest preemptible sequence gives
// its blocks up: a kRun sequence goes back to the waiting queue and recomputes prompt and output
// (the same tokens follow, by batch invariance), an activated reservation leaves the engine. A
// kPrefill sequence is never preempted: its blocks may be read by the transfer thread. The oldest
// sequence can therefore always go on, unless blocks are held from outside (sending, receiving),
// which leases end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/kv/block_manager.h"
#include "engine/scheduler/prefill_order.h"
#include "engine/scheduler/scheduler_options.h"
#include "engine/scheduler/sequence.h"
#include "engine/scheduler/step_work.h"

namespace sluice {

// tokens[start, start + num_tokens) of a sequence, to be computed in this step.
struct PlannedSlice {
  Sequence* sequence = nullptr;
  int start = 0;
  int num_tokens = 0;
  bool sample = false;  // the last token's logits give the next token
};

struct StepPlan {
  std::vector<PlannedSlice> slices;  // decodes first; at most max_num_seqs
  int num_decode_tokens = 0;
  int num_prefill_tokens = 0;
  std::vector<SequenceKey> preempted;  // left the engine: activated reservations
};

class Scheduler {
 public:
  // `model_fingerprint` roots the block hashes. REQUIRES: options.Validate().ok();
  // options.max_model_len > 0.
  Scheduler(const SchedulerOptions& options, std::string model_fingerprint, BlockManager* blocks);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Queues a kPrefill or kRun sequence. RESOURCE_EXHAUSTED: the queue is full, or it can never fit
  // the pool; ALREADY_EXISTS. REQUIRES: 0 < tokens.size() < max_model_len and num_output_tokens <
  // max_tokens.
  absl::Status Add(SequenceInput input, SequenceKind kind);
  // Takes blocks for a sequence whose KV comes from outside. It does not queue, but leaves the
  // first waiting sequence what that needs. RESOURCE_EXHAUSTED: not now, or never.
  absl::StatusOr<const Sequence*> Reserve(SequenceInput input);

  // Leading tokens of `input` that a sequence added now would find in the prefix cache.
  int CachedTokens(const SequenceInput& input) const;
  // Holds blocks of a reservation's cached prefix as `sending`, for tokens [begin, end), until
  // Unpin, whatever becomes of the reservation. INVALID_ARGUMENT: not whole blocks of its prefix.
  // REQUIRES: phase kReserved.
  absl::StatusOr<PinId> PinPrefix(const Sequence& sequence, int begin, int end);
  struct PrefixPin {
    SequenceKey key;  // whose reservation lent it
    std::vector<BlockId> blocks;
  };
  const absl::flat_hash_map<PinId, PrefixPin>& pins() const { return pins_; }
  void Unpin(PinId pin);

  // nullptr when unknown. The pointer is valid until the sequence leaves.
  Sequence* Find(const SequenceKey& key);

  // The reservation's KV is complete, and `first` follows its tokens: it decodes from the next step
  // on. REQUIRES: phase kReserved.
  void Activate(Sequence* sequence, TokenId first);
  // Its transfer is dead, but may still write behind the first `num_verified_tokens`: their full
  // blocks become cached prefix, the others must not be given to anybody. Again when more is known.
  // REQUIRES: phase kReserved or kQuarantined.
  void Quarantine(Sequence* sequence, int num_verified_tokens);
  // Removes a reservation; its full blocks within the first `num_verified_tokens` become cached
  // prefix. REQUIRES: phase kReserved or kQuarantined; nothing writes to the blocks any more.
  void Abandon(Sequence* sequence, int num_verified_tokens);
  // Removes any other sequence; its published blocks stay cached.
  void Remove(Sequence* sequence);

  // The next step. After it, the caller computes all slices and then, slice by slice, calls Advance
  // and, for one that sampled, Append, Pin or Remove. Nothing else until all slices are handled.
  const StepPlan& Plan();
  // The slice's KV is in its blocks: full blocks can be found by others from now on.
  void Advance(const PlannedSlice& slice);
  // `token` was sampled after the last computed one: a kRun or kReserved sequence decodes on.
  void Append(Sequence* sequence, TokenId token);
  // A kPrefill sequence is computed: its blocks are `sending` until Remove.
  void Pin(Sequence* sequence);

  // False when Plan() would be empty until a call frees blocks or adds work: no use in stepping.
  bool HasWork() const { return !running_.empty() || (!waiting_.empty() && !stalled_); }

  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  int num_reserved() const { return num_reserved_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  // Tokens of admitted and waiting prompts that are not computed yet. O(sequences).
  int64_t QueuedPrefillTokens() const;
  // All sequences, oldest first. O(sequences log sequences).
  std::vector<const Sequence*> Sequences() const;

  // Holds block tables against the block manager, and the incremental counts against the sequences.
  // For tests and debugging.
  absl::Status CheckIntegrity() const;

 private:
  std::unique_ptr<Sequence> MakeSequence(SequenceInput input, SequenceKind kind);
  absl::Status CheckCanEverFit(const SequenceInput& input, SequenceKind kind) const;
  bool IsLong(const Sequence& sequence) const {
    return sequence.num_prefill_tokens > options_.long_prompt_tokens;
  }
  // Blocks beyond those for `tokens` that admission promises the sequence.
  int64_t ExpectedGrowthBlocks(const Sequence& sequence) const;
  // Leading full blocks whose KV may be taken from the cache.
  absl::Span<const BlockHash> ReusableChain(const Sequence& sequence) const;

  struct BlockDemand {
    BlockManager::PrefixMatch prefix;
    int64_t num_new = 0;  // behind the prefix, for the tokens there are
    int64_t growth = 0;
    // How many of the allocatable blocks it takes, or has promised to it.
    int64_t num_allocatable() const { return num_new + prefix.num_cached + growth; }
  };
  BlockDemand DemandOf(const Sequence& sequence) const;
  // Gives the sequence its cached prefix and blocks for the rest of its tokens, in the given use.
  // False: they are not there, beside what is promised and the `num_blocks_kept` for others.
  bool AcquireBlocks(Sequence* sequence, BlockUse use, int64_t num_blocks_kept);
  bool Admit(Sequence* sequence);
  // Makes room for the token that a decoding sequence computes next, preempting if need be. False
  // when the sequence itself had to go.
  bool EnsureDecodeBlock(Sequence* sequence);
  void Preempt(Sequence* sequence);
  void PlanDecodes();
  void PlanPrefills();
  // What prefill may still take in the present step.
  struct PrefillBudget {
    StepWork work;
    int tokens = 0;
    int long_prompt_tokens = 0;  // of these, by long prompts
    bool admission_open = true;
    int AllowanceOf(bool is_long) const {
      return std::max(0, is_long ? std::min(tokens, long_prompt_tokens) : tokens);
    }
  };
  void PlanPrefillRound(PrefillBudget* budget);

  void PublishFullBlocks(Sequence* sequence);
  // A reservation's blocks of its first tokens become prefix; it holds the others in `use`.
  void KeepVerified(Sequence* sequence, int num_verified_tokens, BlockUse use);
  void AddToWaiting(Sequence* sequence);
  void RemoveFromWaiting(Sequence* sequence);
  int MatchedTokens(const Sequence& sequence) const;
  void AddToRunning(Sequence* sequence);
  void RemoveFromRunning(Sequence* sequence);
  void ReleaseBlocks(Sequence* sequence, BlockUse use);
  void Erase(Sequence* sequence);

  const SchedulerOptions options_;
  const std::string model_fingerprint_;
  const int64_t ageing_tokens_per_step_;
  BlockManager* const blocks_;

  absl::flat_hash_map<SequenceKey, std::unique_ptr<Sequence>> sequences_;
  absl::flat_hash_map<PinId, PrefixPin> pins_;
  std::vector<Sequence*> running_;  // prefilling and decoding; by arrival; at most max_num_seqs
  absl::btree_set<Sequence*, GoesBefore> waiting_;
  int num_short_waiting_ = 0;
  int num_reserved_ = 0;         // reserved and quarantined
  int64_t promised_blocks_ = 0;  // sum of promised_blocks_left
  uint64_t next_arrival_ = 0;
  uint64_t last_pin_ = 0;
  int64_t step_ = 0;
  int64_t num_preemptions_ = 0;
  bool stalled_ = false;  // the last plan admitted nobody, and nothing has changed since

  StepPlan plan_;  // reused from step to step
  std::vector<Sequence*> prefill_candidates_;
};

}  // namespace sluice
