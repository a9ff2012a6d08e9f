// Fetches rows of the KV cache beside the arithmetic of the AMX attention, into the second level of
// cache and in the order of memory. The tile loads' own order, a few bytes of each of 16 to 64
// rows, is none that the hardware could run ahead of.
#pragma once

#include <cstdint>

#include "engine/device/cpu/amx_tile.h"
#include "engine/device/cpu/kernels.h"

namespace sluice::cpu {
namespace {

// How many tokens of the next partition are fetched while the values of this one are summed. The
// rest follows beside its scores: with few rows just ahead of them, since lines that wait long
// are lost again; with many rows all tokens are needed soon.
inline int TokensFetchedAhead(int rows) { return rows <= kTileRows ? 32 : 128; }

class RowPrefetch {
 public:
  // Tokens [begin, end) of `row_base` in `steps` steps; none if it is null.
  RowPrefetch(const AttentionArgs& args, const void* const* row_base, int begin, int end,
              int64_t steps)
      : row_base_(row_base),
        block_tokens_(args.block_tokens),
        row_bytes_(args.row_stride * 2),
        token_(begin),
        end_(row_base != nullptr && end > begin ? end : begin) {
    const int64_t lines = (end_ - token_) * row_bytes_ / kLineBytes;
    lines_per_step_ = steps > 0 ? (lines + steps - 1) / steps : 0;
  }

  void Step() {
    for (int64_t i = 0; i < lines_per_step_; ++i) {
      if (at_ >= block_end_) {
        if (token_ >= end_) return;
        NextBlock();
      }
      PrefetchToL2(at_);
      at_ += kLineBytes;
    }
  }

 private:
  static constexpr int64_t kLineBytes = 64;

  void NextBlock() {
    const int in_block = token_ % block_tokens_;
    const int left = end_ - token_;
    const int tokens = block_tokens_ - in_block < left ? block_tokens_ - in_block : left;
    at_ = static_cast<const uint8_t*>(row_base_[token_ / block_tokens_]) + in_block * row_bytes_;
    block_end_ = at_ + tokens * row_bytes_;
    token_ += tokens;
  }

  const void* const* const row_base_;
  const int block_tokens_;
  const int64_t row_bytes_;
  int token_;  // first of the next block
  const int end_;
  int64_t lines_per_step_;
  const uint8_t* at_ = nullptr;
  const uint8_t* block_end_ = nullptr;
};

}  // namespace
}  // namespace sluice::cpu
