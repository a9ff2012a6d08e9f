#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "engine/scheduler/mutants.h"

namespace sluice {
namespace {

int64_t BlocksFor(int64_t num_tokens) { return (num_tokens + kBlockTokens - 1) / kBlockTokens; }

// The last token is never reused: its logits give the next one, and a handoff carries that next
// token with the KV of at least the last block.
size_t NumReusableBlocks(size_t num_tokens) { return (num_tokens - 1) / kBlockTokens; }

bool ArrivedBefore(const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }

}  // namespace

const char* SequencePhaseName(SequencePhase phase) {
  switch (phase) {
    case SequencePhase::kWaiting:
      return "waiting";
    case SequencePhase::kPrefilling:
      return "prefilling";
    case SequencePhase::kDecoding:
      return "decoding";
    case SequencePhase::kPinned:
      return "sending";
    case SequencePhase::kReserved:
      return "receiving";
    case SequencePhase::kQuarantined:
      return "quarantined";
  }
  return "unknown";
}

Scheduler::Scheduler(const SchedulerOptions& options, std::string model_fingerprint,
                     BlockManager* blocks)
    : options_(options),
      model_fingerprint_(std::move(model_fingerprint)),
      ageing_tokens_per_step_(AgeingTokensPerStep(options.max_num_batched_tokens)),
      blocks_(blocks) {
  SLUICE_CHECK(options_.Validate().ok() && options_.max_model_len > 0);
  running_.reserve(options_.max_num_seqs);
  plan_.slices.reserve(options_.max_num_seqs);
  prefill_candidates_.reserve(options_.max_num_seqs);
}

absl::Status Scheduler::Add(SequenceInput input, SequenceKind kind) {
  SLUICE_CHECK(kind != SequenceKind::kReserved);
  if (sequences_.contains(input.key)) {
    return absl::AlreadyExistsError("scheduler: this request and attempt is in the engine already");
  }
  if (num_waiting() >= options_.max_num_waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat("scheduler: the waiting queue is full (", options_.max_num_waiting, ")"));
  }
  if (absl::Status fits = CheckCanEverFit(input, kind); !fits.ok()) return fits;
  std::unique_ptr<Sequence> sequence = MakeSequence(std::move(input), kind);
  AddToWaiting(sequence.get());
  sequences_.emplace(sequence->key, std::move(sequence));
  return absl::OkStatus();
}

absl::StatusOr<const Sequence*> Scheduler::Reserve(SequenceInput input) {
  if (sequences_.contains(input.key)) {
    return absl::AlreadyExistsError("scheduler: this request and attempt is in the engine already");
  }
  if (absl::Status fits = CheckCanEverFit(input, SequenceKind::kReserved); !fits.ok()) return fits;
  // Otherwise reservations, which do not queue, could keep a large prompt waiting for ever.
  const Sequence* first_waiting = waiting_.empty() ? nullptr : *waiting_.begin();
  const int num_places_kept = first_waiting == nullptr ? 0 : 1;
  if (num_running() + num_reserved_ + num_places_kept >= options_.max_num_seqs) {
    return absl::ResourceExhaustedError(
        absl::StrCat("scheduler: ", num_running(), " sequences run, ", num_reserved_,
                     " are reserved and ", num_waiting(), " wait, of ", options_.max_num_seqs));
  }
  const int64_t num_blocks_kept =
      first_waiting == nullptr ? 0 : DemandOf(*first_waiting).num_allocatable();
  std::unique_ptr<Sequence> sequence = MakeSequence(std::move(input), SequenceKind::kReserved);
  if (!AcquireBlocks(sequence.get(), BlockUse::kReceiving, num_blocks_kept)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("scheduler: not enough KV blocks for ", sequence->tokens.size(),
                     " tokens and their answer: ", blocks_->num_allocatable(), " allocatable, ",
                     promised_blocks_ + num_blocks_kept, " of them promised"));
  }
  sequence->phase = SequencePhase::kReserved;
  ++num_reserved_;
  const Sequence* result = sequence.get();
  sequences_.emplace(sequence->key, std::move(sequence));
  return result;
}

int Scheduler::CachedTokens(const SequenceInput& input) const {
  if (input.tokens.empty()) return 0;
  const std::vector<BlockHash> chain =
      BlockHashChain(RootBlockHash(model_fingerprint_, input.tenant_salt), input.tokens);
  const size_t num_reusable = NumReusableBlocks(input.tokens.size());
  return static_cast<int>(
             blocks_->MatchPrefix(absl::MakeConstSpan(chain).first(num_reusable)).num_blocks) *
         kBlockTokens;
}

absl::StatusOr<PinId> Scheduler::PinPrefix(const Sequence& sequence, int begin, int end) {
  SLUICE_CHECK(sequence.phase == SequencePhase::kReserved);
  if (begin < 0 || begin >= end || end > sequence.num_computed || begin % kBlockTokens != 0 ||
      end % kBlockTokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("scheduler: tokens [", begin, ", ", end,
                                                   ") are not whole blocks of a cached prefix of ",
                                                   sequence.num_computed));
  }
  const auto blocks = absl::MakeConstSpan(sequence.block_table)
                          .subspan(begin / kBlockTokens, (end - begin) / kBlockTokens);
  blocks_->Lend(blocks);
  const PinId pin(++last_pin_);
  pins_.emplace(pin, PrefixPin{sequence.key, {blocks.begin(), blocks.end()}});
  return pin;
}

void Scheduler::Unpin(PinId pin) {
  const auto it = pins_.find(pin);
  if (it == pins_.end()) return;
  blocks_->Release(it->second.blocks, BlockUse::kSending);
  pins_.erase(it);
  stalled_ = false;
}

Sequence* Scheduler::Find(const SequenceKey& key) {
  const auto it = sequences_.find(key);
  return it == sequences_.end() ? nullptr : it->second.get();
}

void Scheduler::Activate(Sequence* sequence, TokenId first) {
  SLUICE_CHECK(sequence->phase == SequencePhase::kReserved);
  blocks_->ChangeUse(
      absl::MakeConstSpan(sequence->block_table).subspan(sequence->num_computed / kBlockTokens),
      BlockUse::kReceiving, BlockUse::kActive);
  --num_reserved_;
  sequence->num_computed = static_cast<int>(sequence->tokens.size());
  PublishFullBlocks(sequence);
  sequence->tokens.push_back(first);
  sequence->phase = SequencePhase::kDecoding;
  AddToRunning(sequence);
}

void Scheduler::Quarantine(Sequence* sequence, int num_verified_tokens) {
  SLUICE_CHECK(sequence->phase == SequencePhase::kReserved ||
               sequence->phase == SequencePhase::kQuarantined);
  if (sequence->phase == SequencePhase::kReserved) {
    blocks_->ChangeUse(
        absl::MakeConstSpan(sequence->block_table).subspan(sequence->num_computed / kBlockTokens),
        BlockUse::kReceiving, BlockUse::kQuarantined);
    sequence->phase = SequencePhase::kQuarantined;
  }
  KeepVerified(sequence, num_verified_tokens, BlockUse::kQuarantined);
}

void Scheduler::KeepVerified(Sequence* sequence, int num_verified_tokens, BlockUse use) {
  const int num_verified =
      std::min(num_verified_tokens, static_cast<int>(sequence->tokens.size())) / kBlockTokens;
  const int num_cached = sequence->num_computed / kBlockTokens;
  if (num_verified <= num_cached) return;
  blocks_->ChangeUse(
      absl::MakeConstSpan(sequence->block_table).subspan(num_cached, num_verified - num_cached),
      use, BlockUse::kActive);
  sequence->num_computed = num_verified * kBlockTokens;
  PublishFullBlocks(sequence);
}

void Scheduler::Abandon(Sequence* sequence, int num_verified_tokens) {
  SLUICE_CHECK(sequence->phase == SequencePhase::kReserved ||
               sequence->phase == SequencePhase::kQuarantined);
  const BlockUse use =
      sequence->phase == SequencePhase::kReserved ? BlockUse::kReceiving : BlockUse::kQuarantined;
  if (Planted(SchedulerMutant::kTrustUnverified)) {
    num_verified_tokens = static_cast<int>(sequence->tokens.size());
  }
  KeepVerified(sequence, num_verified_tokens, use);
  const int num_good = sequence->num_computed / kBlockTokens;
  blocks_->Release(absl::MakeConstSpan(sequence->block_table).subspan(num_good), use);
  sequence->block_table.resize(num_good);
  ReleaseBlocks(sequence, BlockUse::kActive);
  if (!Planted(SchedulerMutant::kReserveForEver)) --num_reserved_;
  Erase(sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  switch (sequence->phase) {
    case SequencePhase::kWaiting:
      RemoveFromWaiting(sequence);
      break;
    case SequencePhase::kPrefilling:
    case SequencePhase::kDecoding:
      RemoveFromRunning(sequence);
      ReleaseBlocks(sequence, BlockUse::kActive);
      break;
    case SequencePhase::kPinned:
      ReleaseBlocks(sequence, BlockUse::kSending);
      break;
    case SequencePhase::kReserved:
    case SequencePhase::kQuarantined:
      SLUICE_CHECK(!"a reservation is abandoned, not removed");
  }
  Erase(sequence);
}

const StepPlan& Scheduler::Plan() {
  ++step_;
  plan_.slices.clear();
  plan_.preempted.clear();
  plan_.num_decode_tokens = 0;
  plan_.num_prefill_tokens = 0;
  PlanDecodes();
  PlanPrefills();
  stalled_ = plan_.slices.empty();
  return plan_;
}

void Scheduler::Advance(const PlannedSlice& slice) {
  SLUICE_CHECK(slice.sequence->num_computed == slice.start);
  slice.sequence->num_computed += slice.num_tokens;
  PublishFullBlocks(slice.sequence);
}

void Scheduler::Append(Sequence* sequence, TokenId token) {
  SLUICE_CHECK(sequence->num_uncomputed() == 0);
  sequence->tokens.push_back(token);
  if (sequence->kind != SequenceKind::kPrefill) sequence->phase = SequencePhase::kDecoding;
}

void Scheduler::Pin(Sequence* sequence) {
  SLUICE_CHECK(sequence->kind == SequenceKind::kPrefill &&
               sequence->phase == SequencePhase::kPrefilling);
  RemoveFromRunning(sequence);
  blocks_->ChangeUse(sequence->block_table, BlockUse::kActive, BlockUse::kSending);
  sequence->phase = SequencePhase::kPinned;
}

int64_t Scheduler::QueuedPrefillTokens() const {
  int64_t num_tokens = 0;
  for (const Sequence* sequence : running_) {
    if (sequence->phase == SequencePhase::kPrefilling) num_tokens += sequence->num_uncomputed();
  }
  for (const Sequence* sequence : waiting_) num_tokens += sequence->num_prefill_tokens;
  return num_tokens;
}

std::vector<const Sequence*> Scheduler::Sequences() const {
  std::vector<const Sequence*> all;
  all.reserve(sequences_.size());
  for (const auto& [key, sequence] : sequences_) all.push_back(sequence.get());
  std::sort(all.begin(), all.end(), ArrivedBefore);
  return all;
}

std::unique_ptr<Sequence> Scheduler::MakeSequence(SequenceInput input, SequenceKind kind) {
  auto sequence = std::make_unique<Sequence>();
  sequence->key = input.key;
  sequence->kind = kind;
  sequence->sampling = std::move(input.sampling);
  sequence->tokens = std::move(input.tokens);
  sequence->num_input_tokens = static_cast<int>(sequence->tokens.size());
  sequence->num_prompt_tokens = sequence->num_input_tokens - input.num_output_tokens;
  sequence->arrival = next_arrival_++;
  sequence->arrival_step = step_;
  sequence->root_hash = RootBlockHash(model_fingerprint_, input.tenant_salt);
  sequence->block_hashes = BlockHashChain(sequence->root_hash, sequence->tokens);
  // One allocation for the answer too, within reason.
  sequence->tokens.reserve(sequence->tokens.size() +
                           std::clamp(sequence->sampling.max_tokens, 0, 1024));
  return sequence;
}

absl::Status Scheduler::CheckCanEverFit(const SequenceInput& input, SequenceKind kind) const {
  const int64_t num_tokens = static_cast<int64_t>(input.tokens.size());
  int64_t num_kv_tokens = num_tokens;
  if (kind != SequenceKind::kPrefill) {
    const int64_t final_length = std::min<int64_t>(
        num_tokens - input.num_output_tokens + input.sampling.max_tokens, options_.max_model_len);
    // The last token of an answer is never computed.
    num_kv_tokens = std::max(num_tokens, final_length - 1);
  }
  if (BlocksFor(num_kv_tokens) <= blocks_->num_blocks()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("scheduler: prompt and answer may need ", BlocksFor(num_kv_tokens),
                   " KV blocks, the pool has ", blocks_->num_blocks()));
}

int64_t Scheduler::ExpectedGrowthBlocks(const Sequence& sequence) const {
  if (sequence.kind == SequenceKind::kPrefill) return 0;
  const int64_t num_tokens = static_cast<int64_t>(sequence.tokens.size());
  const int64_t num_to_come = std::min<int64_t>(
      sequence.sampling.max_tokens - sequence.num_output_tokens(), options_.expected_output_tokens);
  const int64_t final_length = std::min<int64_t>(num_tokens + num_to_come, options_.max_model_len);
  return BlocksFor(std::max(num_tokens, final_length - 1)) - BlocksFor(num_tokens);
}

absl::Span<const BlockHash> Scheduler::ReusableChain(const Sequence& sequence) const {
  const size_t num_tokens = sequence.tokens.size();
  const size_t num_blocks = Planted(SchedulerMutant::kReuseWholePrompt)
                                ? num_tokens / kBlockTokens
                                : NumReusableBlocks(num_tokens);
  return absl::MakeConstSpan(sequence.block_hashes).first(num_blocks);
}

int Scheduler::MatchedTokens(const Sequence& sequence) const {
  return static_cast<int>(blocks_->MatchPrefix(ReusableChain(sequence)).num_blocks) * kBlockTokens;
}

Scheduler::BlockDemand Scheduler::DemandOf(const Sequence& sequence) const {
  BlockDemand demand;
  demand.prefix = blocks_->MatchPrefix(ReusableChain(sequence));
  demand.num_new =
      BlocksFor(static_cast<int64_t>(sequence.tokens.size())) - demand.prefix.num_blocks;
  demand.growth = ExpectedGrowthBlocks(sequence);
  return demand;
}

bool Scheduler::AcquireBlocks(Sequence* sequence, BlockUse use, int64_t num_blocks_kept) {
  const BlockDemand demand = DemandOf(*sequence);
  const BlockManager::PrefixMatch& match = demand.prefix;
  if (demand.num_allocatable() + promised_blocks_ + num_blocks_kept > blocks_->num_allocatable()) {
    return false;
  }
  SLUICE_CHECK(sequence->block_table.empty());
  sequence->block_table.reserve(match.num_blocks + demand.num_new + demand.growth);
  blocks_->AcquirePrefix(ReusableChain(*sequence).first(match.num_blocks), &sequence->block_table);
  SLUICE_CHECK(blocks_->Allocate(demand.num_new, use, &sequence->block_table));
  sequence->promised_blocks_left = demand.growth;
  promised_blocks_ += demand.growth;
  sequence->num_published_blocks = static_cast<int>(match.num_blocks);
  sequence->num_computed = static_cast<int>(match.num_blocks) * kBlockTokens;
  sequence->num_prefill_tokens = sequence->num_uncomputed();
  if (!sequence->was_admitted) {
    sequence->was_admitted = true;
    sequence->num_cached_tokens = sequence->num_computed;
  }
  return true;
}

bool Scheduler::Admit(Sequence* sequence) {
  if (num_running() + num_reserved_ >= options_.max_num_seqs) return false;
  if (!AcquireBlocks(sequence, BlockUse::kActive, /*num_blocks_kept=*/0)) return false;
  sequence->phase = SequencePhase::kPrefilling;
  AddToRunning(sequence);
  return true;
}

bool Scheduler::EnsureDecodeBlock(Sequence* sequence) {
  const size_t num_needed = static_cast<size_t>(sequence->num_computed / kBlockTokens) + 1;
  if (sequence->block_table.size() >= num_needed) return true;
  while (!blocks_->Allocate(1, BlockUse::kActive, &sequence->block_table)) {
    // `sequence` itself is preemptible, so there is a victim, and none older than `sequence`.
    const auto victim = std::find_if(running_.rbegin(), running_.rend(), [](const Sequence* other) {
      return other->kind != SequenceKind::kPrefill;
    });
    SLUICE_CHECK(victim != running_.rend() && !ArrivedBefore(*victim, sequence));
    const bool preempts_itself = *victim == sequence;
    Preempt(*victim);
    if (preempts_itself) return false;
  }
  if (sequence->promised_blocks_left > 0) {
    --sequence->promised_blocks_left;
    --promised_blocks_;
  }
  return true;
}

void Scheduler::Preempt(Sequence* sequence) {
  ++num_preemptions_;
  RemoveFromRunning(sequence);
  ReleaseBlocks(sequence, BlockUse::kActive);
  if (sequence->kind == SequenceKind::kReserved) {
    if (!Planted(SchedulerMutant::kPreemptInSilence)) plan_.preempted.push_back(sequence->key);
    Erase(sequence);
    return;
  }
  sequence->phase = SequencePhase::kWaiting;
  sequence->num_computed = 0;
  sequence->num_published_blocks = 0;
  AddToWaiting(sequence);
}

void Scheduler::PlanDecodes() {
  // Oldest first, so that a victim is never one that this plan has served already.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    if (sequence->phase != SequencePhase::kDecoding) continue;
    if (!EnsureDecodeBlock(sequence)) break;  // it was the last one
    plan_.slices.push_back({sequence, sequence->num_computed, 1, true});
    ++plan_.num_decode_tokens;
  }
}

void Scheduler::PublishFullBlocks(Sequence* sequence) {
  int& next = sequence->num_published_blocks;
  for (; (next + 1) * kBlockTokens <= sequence->num_computed; ++next) {
    if (static_cast<size_t>(next) >= sequence->block_hashes.size()) {
      const BlockHash& parent = next == 0 ? sequence->root_hash : sequence->block_hashes[next - 1];
      sequence->block_hashes.push_back(ChildBlockHash(
          parent,
          absl::MakeConstSpan(sequence->tokens).subspan(next * kBlockTokens, kBlockTokens)));
    }
    blocks_->Publish(sequence->block_table[next], sequence->block_hashes[next]);
  }
}

void Scheduler::AddToWaiting(Sequence* sequence) {
  const int num_tokens = static_cast<int>(sequence->tokens.size());
  sequence->num_prefill_tokens = num_tokens - MatchedTokens(*sequence);
  sequence->num_planned = 0;
  sequence->score = PrefillScore(*sequence, sequence->num_prefill_tokens, ageing_tokens_per_step_);
  waiting_.insert(sequence);
  if (!IsLong(*sequence)) ++num_short_waiting_;
  stalled_ = false;
}

void Scheduler::RemoveFromWaiting(Sequence* sequence) {
  if (!IsLong(*sequence)) --num_short_waiting_;
  SLUICE_CHECK(waiting_.erase(sequence) == 1);
}

void Scheduler::AddToRunning(Sequence* sequence) {
  running_.insert(std::lower_bound(running_.begin(), running_.end(), sequence, ArrivedBefore),
                  sequence);
}

void Scheduler::RemoveFromRunning(Sequence* sequence) {
  const auto it = std::lower_bound(running_.begin(), running_.end(), sequence, ArrivedBefore);
  SLUICE_CHECK(it != running_.end() && *it == sequence);
  running_.erase(it);
}

void Scheduler::ReleaseBlocks(Sequence* sequence, BlockUse use) {
  blocks_->Release(sequence->block_table, use);
  sequence->block_table.clear();
  if (!Planted(SchedulerMutant::kKeepPromise)) {
    promised_blocks_ -= sequence->promised_blocks_left;
  }
  sequence->promised_blocks_left = 0;
}

void Scheduler::Erase(Sequence* sequence) {
  stalled_ = false;
  SLUICE_CHECK(sequences_.erase(sequence->key) == 1);
}

}  // namespace sluice
