#include "engine/runtime/engine_impl.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

// Clears the rows of tokens [first_token, block_tokens) in one block, in every layer, so that a
// block that travels half full carries nothing of its previous owner.
void ZeroBlockTail(const KvLayout& layout, int first_token, absl::Span<uint8_t> block) {
  size_t offset = 0;
  for (const CacheGroup& group : layout.groups) {
    const size_t row_bytes = static_cast<size_t>(group.bytes_per_token_and_layer);
    const size_t layer_bytes = static_cast<size_t>(layout.block_tokens) * row_bytes;
    const size_t tail_begin = static_cast<size_t>(first_token) * row_bytes;
    for (int64_t layer = 0; layer < group.num_layers; ++layer) {
      std::memset(block.data() + offset + tail_begin, 0, layer_bytes - tail_begin);
      offset += layer_bytes;
    }
  }
}

#ifndef NDEBUG
constexpr int64_t kStepsPerIntegrityCheck = 64;
#endif

int RoundDownToBlock(int num_tokens) { return num_tokens / kBlockTokens * kBlockTokens; }

}  // namespace

EngineImpl::EngineImpl(EngineParts parts)
    : options_(parts.scheduler),
      fingerprint_(std::move(parts.fingerprint)),
      isa_(std::move(parts.isa)),
      kv_store_(std::move(parts.kv_store)),
      kv_prefault_(std::move(parts.kv_prefault)),
      model_(std::move(parts.model)),
      vocab_size_(static_cast<size_t>(model_->spec().vocab_size)),
      blocks_(kv_store_->num_blocks(), options_.enable_prefix_cache),
      scheduler_(options_, fingerprint_.digest, &blocks_),
      samplers_(static_cast<size_t>(model_->num_workers()),
                Sampler(model_->spec().vocab_size, parts.sampleable_vocab_size > 0
                                                       ? parts.sampleable_vocab_size
                                                       : model_->spec().vocab_size)),
      // Not cleared: pages that small batches never reach are never touched.
      logits_(new float[static_cast<size_t>(options_.max_num_seqs) * vocab_size_]) {
  SLUICE_CHECK(kv_store_->layout().block_tokens == kBlockTokens);
  slices_.reserve(static_cast<size_t>(options_.max_num_seqs));
  rows_.reserve(static_cast<size_t>(options_.max_num_seqs));
}

absl::Status EngineImpl::AddPrefill(SequenceInput input) {
  return Add(std::move(input), SequenceKind::kPrefill);
}

absl::Status EngineImpl::AddRun(SequenceInput input) {
  return Add(std::move(input), SequenceKind::kRun);
}

absl::Status EngineImpl::Add(SequenceInput input, SequenceKind kind) {
  SLUICE_RETURN_IF_ERROR(Validate(input));
  const SequenceKey key = input.key;
  std::optional<TokenCounts> counts;
  if (TokenCounts::NeededBy(input.sampling)) counts.emplace(input.tokens, input.num_output_tokens);
  SLUICE_RETURN_IF_ERROR(scheduler_.Add(std::move(input), kind));
  if (counts.has_value()) token_counts_.emplace(key, *std::move(counts));
  return absl::OkStatus();
}

absl::StatusOr<Reservation> EngineImpl::Reserve(SequenceInput input) {
  SLUICE_RETURN_IF_ERROR(Validate(input));
  const SequenceKey key = input.key;
  std::optional<TokenCounts> counts;
  if (TokenCounts::NeededBy(input.sampling)) counts.emplace(input.tokens, input.num_output_tokens);
  SLUICE_ASSIGN_OR_RETURN(const Sequence* sequence, scheduler_.Reserve(std::move(input)));
  if (counts.has_value()) token_counts_.emplace(key, *std::move(counts));
  Reservation reservation;
  reservation.cached_tokens = sequence->num_cached_tokens;
  reservation.blocks.assign(
      sequence->block_table.begin() + sequence->num_cached_tokens / kBlockTokens,
      sequence->block_table.end());
  AssertBlocksBalance();
  return reservation;
}

absl::Status EngineImpl::Activate(SequenceKey key, const SampledToken& first) {
  Sequence* sequence = scheduler_.Find(key);
  if (sequence == nullptr) {
    return absl::NotFoundError("activate: no reservation of this request and attempt");
  }
  if (sequence->phase != SequencePhase::kReserved) {
    return absl::FailedPreconditionError(absl::StrCat(
        "activate: the sequence is ", SequencePhaseName(sequence->phase), ", not receiving"));
  }
  if (first.token < 0 || static_cast<size_t>(first.token) >= vocab_size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("activate: token ", first.token, ", the vocabulary has ", vocab_size_));
  }
  scheduler_.Activate(sequence, first.token);
  if (const auto it = token_counts_.find(key); it != token_counts_.end()) {
    it->second.AddOutput(first.token);
  }
  if (const std::optional<EndReason> reason = EndAfterLastToken(*sequence)) {
    Drop(sequence);
    ended_between_steps_.push_back({key, *reason, absl::OkStatus()});
  }
  AssertBlocksBalance();
  return absl::OkStatus();
}

void EngineImpl::QuarantineReservation(SequenceKey key, int verified_tokens) {
  Sequence* sequence = scheduler_.Find(key);
  if (sequence == nullptr) return;
  if (sequence->phase == SequencePhase::kReserved ||
      sequence->phase == SequencePhase::kQuarantined) {
    scheduler_.Quarantine(sequence, std::max(verified_tokens, 0));
    AssertBlocksBalance();
  }
}

void EngineImpl::AbandonReservation(SequenceKey key, int verified_tokens) {
  Sequence* sequence = scheduler_.Find(key);
  if (sequence == nullptr) return;
  if (sequence->phase != SequencePhase::kReserved &&
      sequence->phase != SequencePhase::kQuarantined) {
    return;
  }
  token_counts_.erase(key);
  scheduler_.Abandon(sequence, std::max(verified_tokens, 0));
  AssertBlocksBalance();
}

int EngineImpl::CachedTokens(const SequenceInput& input) const {
  return scheduler_.CachedTokens(input);
}

absl::StatusOr<PrefixPin> EngineImpl::PinPrefix(SequenceKey key, int begin, int end) {
  const Sequence* sequence = scheduler_.Find(key);
  if (sequence == nullptr || sequence->phase != SequencePhase::kReserved) {
    return absl::NotFoundError("pin: no reservation of this request and attempt");
  }
  PrefixPin pin;
  SLUICE_ASSIGN_OR_RETURN(pin.id, scheduler_.PinPrefix(*sequence, begin, end));
  pin.blocks = scheduler_.pins().at(pin.id).blocks;
  return pin;
}

void EngineImpl::Release(SequenceKey key) {
  Sequence* sequence = scheduler_.Find(key);
  if (sequence != nullptr && sequence->kind == SequenceKind::kPrefill) Drop(sequence);
}

bool EngineImpl::Cancel(SequenceKey key) {
  const auto ended = std::find_if(ended_between_steps_.begin(), ended_between_steps_.end(),
                                  [&key](const SequenceEnded& ended) { return ended.key == key; });
  if (ended != ended_between_steps_.end()) {
    ended_between_steps_.erase(ended);
    return true;
  }
  Sequence* sequence = scheduler_.Find(key);
  if (sequence == nullptr || sequence->phase == SequencePhase::kReserved ||
      sequence->phase == SequencePhase::kQuarantined) {
    return false;
  }
  Drop(sequence);
  return true;
}

StepResult EngineImpl::Step() {
  StepResult result;
  result.ended = std::exchange(ended_between_steps_, {});
  const StepPlan& plan = scheduler_.Plan();
  for (const SequenceKey& key : plan.preempted) {
    token_counts_.erase(key);
    result.ended.push_back({key, EndReason::kPreempted, absl::OkStatus()});
  }
  result.num_prefill_tokens = plan.num_prefill_tokens;
  result.num_decode_tokens = plan.num_decode_tokens;
  if (plan.slices.empty()) {
    result.idle = result.ended.empty();
    return result;
  }
  ComputeLogits(plan);
  SampleAll(plan);
  size_t logit_row = 0;
  for (const PlannedSlice& slice : plan.slices) {
    if (slice.sequence->kind != SequenceKind::kReserved &&
        slice.start == slice.sequence->num_cached_tokens) {
      result.started.push_back(slice.sequence->key);
    }
    scheduler_.Advance(slice);
    if (slice.sequence->kind == SequenceKind::kPrefill) ReportChunk(slice.sequence, &result);
    if (slice.sample) {
      AppendSampled(slice.sequence, std::move(rows_[logit_row++].sampled), &result);
    }
  }
#ifndef NDEBUG
  // All of it now and then: it looks at every block.
  if (++num_steps_ % kStepsPerIntegrityCheck == 0) SLUICE_CHECK(CheckIntegrity().ok());
#endif
  AssertBlocksBalance();
  return result;
}

bool EngineImpl::HasWork() const { return !ended_between_steps_.empty() || scheduler_.HasWork(); }

EngineLoad EngineImpl::Load() const {
  EngineLoad load;
  load.running = scheduler_.num_running();
  load.waiting = scheduler_.num_waiting();
  load.queued_prefill_tokens = scheduler_.QueuedPrefillTokens();
  load.num_preemptions = scheduler_.num_preemptions();
  load.blocks = blocks_.counts();
  return load;
}

PrefixCacheChanges EngineImpl::TakePrefixCacheChanges() { return blocks_.TakePrefixCacheChanges(); }

std::vector<Engine::Holder> EngineImpl::Holders() const {
  std::vector<Holder> holders;
  for (const Sequence* sequence : scheduler_.Sequences()) {
    holders.push_back({sequence->key, SequencePhaseName(sequence->phase),
                       static_cast<int>(sequence->block_table.size())});
  }
  for (const auto& [id, pin] : scheduler_.pins()) {
    holders.push_back({pin.key, kLentState, static_cast<int>(pin.blocks.size())});
  }
  return holders;
}

void EngineImpl::AssertBlocksBalance() const {
#ifndef NDEBUG
  SLUICE_CHECK(blocks_.counts().Balanced());
#endif
}

absl::Status EngineImpl::CheckIntegrity() const {
  SLUICE_RETURN_IF_ERROR(scheduler_.CheckIntegrity());
  for (const Sequence* sequence : scheduler_.Sequences()) {
    if (token_counts_.contains(sequence->key) != TokenCounts::NeededBy(sequence->sampling)) {
      return absl::InternalError("engine: token counts do not match the sequences");
    }
  }
  if (token_counts_.size() > scheduler_.Sequences().size()) {
    return absl::InternalError("engine: token counts of sequences that left");
  }
  return absl::OkStatus();
}

absl::Status EngineImpl::Validate(const SequenceInput& input) const {
  const auto invalid = [](auto&&... what) {
    return absl::InvalidArgumentError(absl::StrCat("engine: ", what...));
  };
  const int64_t num_tokens = static_cast<int64_t>(input.tokens.size());
  if (num_tokens == 0) return invalid("the prompt is empty");
  if (num_tokens >= options_.max_model_len) {
    return invalid(num_tokens, " tokens leave no room for an answer: max_model_len is ",
                   options_.max_model_len);
  }
  if (input.num_output_tokens < 0 || input.num_output_tokens >= num_tokens) {
    return invalid(input.num_output_tokens, " output tokens of ", num_tokens);
  }
  if (input.num_output_tokens >= input.sampling.max_tokens) {
    return invalid("max_tokens is ", input.sampling.max_tokens, ", and ", input.num_output_tokens,
                   " are there already");
  }
  for (const TokenId token : input.tokens) {
    if (token < 0 || static_cast<size_t>(token) >= vocab_size_) {
      return invalid("token ", token, " is not in the vocabulary of ", vocab_size_);
    }
  }
  for (const SequenceEnded& ended : ended_between_steps_) {
    if (ended.key == input.key) {
      return absl::AlreadyExistsError("engine: the end of this attempt is not reported yet");
    }
  }
  return ValidateSamplingParams(input.sampling, static_cast<int64_t>(vocab_size_));
}

void EngineImpl::ComputeLogits(const StepPlan& plan) {
  slices_.clear();
  size_t num_logit_rows = 0;
  for (const PlannedSlice& planned : plan.slices) {
    SequenceSlice slice;
    slice.tokens =
        absl::MakeConstSpan(planned.sequence->tokens)
            .subspan(static_cast<size_t>(planned.start), static_cast<size_t>(planned.num_tokens));
    slice.start_position = planned.start;
    slice.block_table = planned.sequence->block_table;
    slice.num_logit_rows = planned.sample ? 1 : 0;
    num_logit_rows += planned.sample ? 1 : 0;
    slices_.push_back(slice);
  }
  model_->Forward(slices_, absl::MakeSpan(logits_.get(), num_logit_rows * vocab_size_));
}

void EngineImpl::ReportChunk(Sequence* sequence, StepResult* result) {
  const int num_tokens = static_cast<int>(sequence->tokens.size());
  ChunkComputed chunk;
  chunk.key = sequence->key;
  chunk.begin = sequence->num_reported;
  chunk.last = sequence->num_computed == num_tokens;
  chunk.end = chunk.last ? num_tokens : RoundDownToBlock(sequence->num_computed);
  if (chunk.end == chunk.begin) return;
  const auto table = absl::MakeConstSpan(sequence->block_table);
  const size_t first_block = static_cast<size_t>(chunk.begin / kBlockTokens);
  const size_t end_block = static_cast<size_t>((chunk.end + kBlockTokens - 1) / kBlockTokens);
  chunk.blocks.assign(table.begin() + first_block, table.begin() + end_block);
  if (chunk.end % kBlockTokens != 0) {
    ZeroBlockTail(kv_store_->layout(), chunk.end % kBlockTokens,
                  kv_store_->Block(chunk.blocks.back()));
  }
  sequence->num_reported = chunk.end;
  result->chunks.push_back(std::move(chunk));
}

void EngineImpl::SampleAll(const StepPlan& plan) {
  rows_.clear();
  for (const PlannedSlice& slice : plan.slices) {
    if (!slice.sample) continue;
    const auto counts = token_counts_.find(slice.sequence->key);
    rows_.push_back({slice.sequence, counts == token_counts_.end() ? nullptr : &counts->second,
                     SampledToken()});
  }
  model_->ParallelFor(static_cast<int>(rows_.size()), [this](int task, int worker) {
    RowToSample& row = rows_[static_cast<size_t>(task)];
    row.sampled = samplers_[static_cast<size_t>(worker)].Sample(
        absl::MakeConstSpan(logits_.get() + static_cast<size_t>(task) * vocab_size_, vocab_size_),
        row.sequence->sampling, row.counts, row.sequence->num_output_tokens());
  });
}

void EngineImpl::AppendSampled(Sequence* sequence, absl::StatusOr<SampledToken> sampled,
                               StepResult* result) {
  const SequenceKey key = sequence->key;
  const auto counts = token_counts_.find(key);
  const int index = sequence->num_output_tokens();
  if (!sampled.ok()) {
    result->ended.push_back({key, EndReason::kFailed, sampled.status()});
    // Somebody may be reading a prefill sequence's blocks.
    if (sequence->kind == SequenceKind::kPrefill) {
      scheduler_.Pin(sequence);
    } else {
      Drop(sequence);
    }
    return;
  }

  TokenProduced produced;
  produced.key = key;
  produced.index = index;
  produced.first = sequence->kind != SequenceKind::kReserved &&
                   static_cast<int>(sequence->tokens.size()) == sequence->num_input_tokens;
  if (produced.first) {
    produced.cached_tokens = std::min(sequence->num_cached_tokens, sequence->num_prompt_tokens);
  }
  produced.token = *std::move(sampled);
  const TokenId token = produced.token.token;
  result->tokens.push_back(std::move(produced));

  scheduler_.Append(sequence, token);
  if (sequence->kind == SequenceKind::kPrefill) {
    scheduler_.Pin(sequence);
    return;
  }
  if (counts != token_counts_.end()) counts->second.AddOutput(token);
  if (const std::optional<EndReason> reason = EndAfterLastToken(*sequence)) {
    Drop(sequence);
    result->ended.push_back({key, *reason, absl::OkStatus()});
  }
}

std::optional<EndReason> EngineImpl::EndAfterLastToken(const Sequence& sequence) const {
  const std::vector<TokenId>& stops = sequence.sampling.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), sequence.tokens.back()) != stops.end()) {
    return EndReason::kStop;
  }
  if (sequence.num_output_tokens() >= sequence.sampling.max_tokens) return EndReason::kLength;
  if (static_cast<int>(sequence.tokens.size()) >= options_.max_model_len) {
    return EndReason::kLength;
  }
  return std::nullopt;
}

void EngineImpl::Drop(Sequence* sequence) {
  token_counts_.erase(sequence->key);
  scheduler_.Remove(sequence);
  AssertBlocksBalance();
}

}  // namespace sluice
