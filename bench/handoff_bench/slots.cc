#include "bench/handoff_bench/slots.h"

#include <algorithm>
#include <utility>

#include "common/status_macros.h"

namespace sluice::bench {

absl::StatusOr<Slots> Slots::Create(const PairOptions& options) {
  KvLayout layout;
  layout.block_tokens = kBlockTokens;
  layout.groups = {{"latent", 1, static_cast<int64_t>(options.block_bytes) / kBlockTokens}};
  const int num_blocks = options.num_transfers_at_once * options.blocks_per_transfer;
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<KvStore> store, KvStore::Create(layout, num_blocks));
  // Touched now, and with bytes that differ.
  for (int block = 0; block < num_blocks; ++block) {
    const absl::Span<uint8_t> bytes = store->Block(BlockId(block));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>((i >> 6) + block);
  }
  return Slots(std::move(store), options);
}

}  // namespace sluice::bench
