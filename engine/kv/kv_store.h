// The memory of one worker's KV blocks: one allocation, block after block (see
// modelspec/kv_layout.h). Who may touch a block when is the block manager's business; this only
// knows addresses. Constant after construction; the bytes follow the block's owner.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "modelspec/kv_layout.h"

namespace sluice {

class KvStore {
 public:
  // Page-aligned, zero-filled on first touch. RESOURCE_EXHAUSTED names the size asked for.
  static absl::StatusOr<std::unique_ptr<KvStore>> Create(const KvLayout& layout,
                                                         int64_t num_blocks);
  ~KvStore();
  KvStore(const KvStore&) = delete;
  KvStore& operator=(const KvStore&) = delete;

  // [block_bytes] of one block: [num_layers][block_tokens][kv_row_dim] of the layout's dtype.
  absl::Span<uint8_t> Block(BlockId block) const {
    return absl::MakeSpan(base_ + static_cast<int64_t>(block.value) * block_bytes_,
                          static_cast<size_t>(block_bytes_));
  }
  // [block_tokens][kv_row_dim] of one layer in a block.
  uint8_t* Layer(BlockId block, int64_t layer) const {
    return base_ + static_cast<int64_t>(block.value) * block_bytes_ + layer * layer_bytes_;
  }
  // All blocks, in their order.
  absl::Span<uint8_t> memory() const {
    return absl::MakeSpan(base_, static_cast<size_t>(num_blocks_ * block_bytes_));
  }
  int64_t num_blocks() const { return num_blocks_; }
  const KvLayout& layout() const { return layout_; }

 private:
  KvStore(const KvLayout& layout, int64_t num_blocks, uint8_t* base);

  const KvLayout layout_;
  const int64_t num_blocks_;
  const int64_t block_bytes_;
  const int64_t layer_bytes_;
  uint8_t* const base_;
};

}  // namespace sluice
