// The KV blocks of one side: the workers' own store, cut into slots of one transfer each.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/handoff_bench/sending_process.h"
#include "engine/kv/kv_store.h"

namespace sluice::bench {

class Slots {
 public:
  static absl::StatusOr<Slots> Create(const PairOptions& options);

  absl::Span<uint8_t> Block(int slot, int block) const {
    return store_->Block(BlockId(slot * blocks_per_slot_ + block));
  }
  // Bytes of one slot.
  uint64_t slot_bytes() const { return slot_bytes_; }

 private:
  Slots(std::unique_ptr<KvStore> store, const PairOptions& options)
      : store_(std::move(store)),
        blocks_per_slot_(options.blocks_per_transfer),
        slot_bytes_(static_cast<uint64_t>(options.blocks_per_transfer) * options.block_bytes) {}

  std::unique_ptr<KvStore> store_;
  int blocks_per_slot_;
  uint64_t slot_bytes_;
};

}  // namespace sluice::bench
