// Scheduler::CheckIntegrity: recomputes from the sequences everything that the scheduler and the
// block manager keep incrementally.
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/scheduler/scheduler.h"

namespace sluice {
namespace {

// How one block is held by all tables together.
struct Holding {
  int num_references = 0;
  bool has_sending = false;
  bool has_receiving = false;
  bool has_quarantined = false;
  bool has_incomplete = false;  // some holder has not computed all of it
};

BlockState ExpectedState(const Holding& holding) {
  if (holding.has_receiving) return BlockState::kReceiving;
  if (holding.has_quarantined) return BlockState::kQuarantined;
  return holding.has_sending ? BlockState::kSending : BlockState::kActive;
}

bool HoldsBlocks(const Sequence& sequence) { return sequence.phase != SequencePhase::kWaiting; }

}  // namespace

absl::Status Scheduler::CheckIntegrity() const {
  const auto broken = [](auto&&... what) {
    return absl::InternalError(absl::StrCat("scheduler: ", what...));
  };
  if (absl::Status status = blocks_->CheckIntegrity(); !status.ok()) return status;

  std::map<BlockId, Holding> holdings;
  int64_t promised = 0;
  int num_reserved = 0, num_running = 0, num_waiting = 0, num_short_waiting = 0;
  for (const auto& [key, owned] : sequences_) {
    const Sequence& sequence = *owned;
    const int num_tokens = static_cast<int>(sequence.tokens.size());
    const int table_size = static_cast<int>(sequence.block_table.size());
    promised += sequence.promised_blocks_left;
    if (sequence.promised_blocks_left < 0) return broken("a negative promise");
    if (sequence.num_computed > num_tokens) return broken("more computed than there is");
    if (sequence.num_planned < 0) return broken("a plan of fewer than no tokens");
    const bool outside =
        sequence.phase == SequencePhase::kReserved || sequence.phase == SequencePhase::kQuarantined;
    num_reserved += outside;
    num_running +=
        sequence.phase == SequencePhase::kPrefilling || sequence.phase == SequencePhase::kDecoding;
    if (sequence.phase == SequencePhase::kWaiting) {
      ++num_waiting;
      num_short_waiting += !IsLong(sequence);
      if (!waiting_.contains(owned.get())) return broken("a waiting sequence is not in the queue");
    }
    if (!HoldsBlocks(sequence) && table_size != 0) return broken("a waiting sequence holds blocks");
    const int needed =
        sequence.phase == SequencePhase::kDecoding || sequence.phase == SequencePhase::kPinned
            ? sequence.num_computed
            : (HoldsBlocks(sequence) ? num_tokens : 0);
    if (table_size * kBlockTokens < needed) return broken("a block table is too short");

    for (int i = 0; i < table_size; ++i) {
      Holding& holding = holdings[sequence.block_table[i]];
      ++holding.num_references;
      const bool complete = (i + 1) * kBlockTokens <= sequence.num_computed;
      holding.has_incomplete |= !complete;
      if (sequence.phase == SequencePhase::kPinned) holding.has_sending = true;
      if (outside && !complete) {
        (sequence.phase == SequencePhase::kReserved ? holding.has_receiving
                                                    : holding.has_quarantined) = true;
      }
    }
  }
  for (const auto& [id, pin] : pins_) {
    for (const BlockId block : pin.blocks) {
      ++holdings[block].num_references;
      holdings[block].has_sending = true;
    }
  }
  for (const auto& [block, holding] : holdings) {
    if (holding.num_references != blocks_->num_references(block)) {
      return broken("block ", block.value, " is in ", holding.num_references, " tables, but has ",
                    blocks_->num_references(block), " references");
    }
    if (blocks_->state(block) != ExpectedState(holding)) {
      return broken("block ", block.value, " is in state ",
                    static_cast<int>(blocks_->state(block)));
    }
    if (holding.num_references > 1 && (!blocks_->is_published(block) || holding.has_incomplete)) {
      return broken("block ", block.value, " is shared, but not full and published");
    }
  }
  const BlockCounts& counts = blocks_->counts();
  if (static_cast<int64_t>(holdings.size()) != counts.total - counts.free - counts.cached) {
    return broken("blocks are held that are in no table");
  }

  if (promised != promised_blocks_) return broken("the promised blocks do not add up");
  if (num_reserved != num_reserved_) return broken("the reservations do not add up");
  if (num_running != static_cast<int>(running_.size())) return broken("the running do not add up");
  if (num_waiting != static_cast<int>(waiting_.size())) return broken("the waiting do not add up");
  if (num_short_waiting != num_short_waiting_) return broken("the short waiting do not add up");
  if (num_running + num_reserved > options_.max_num_seqs) return broken("more than max_num_seqs");
  for (size_t i = 1; i < running_.size(); ++i) {
    if (running_[i - 1]->arrival >= running_[i]->arrival) return broken("running out of order");
  }
  return absl::OkStatus();
}

}  // namespace sluice
