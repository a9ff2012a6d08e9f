#include "engine/kv/kv_store.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"

namespace sluice {

absl::StatusOr<std::unique_ptr<KvStore>> KvStore::Create(const KvLayout& layout,
                                                         int64_t num_blocks) {
  const size_t size = static_cast<size_t>(layout.block_bytes() * num_blocks);
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("KV store: cannot map ", size, " bytes"));
  }
  return std::unique_ptr<KvStore>(new KvStore(layout, num_blocks, static_cast<uint8_t*>(base)));
}

KvStore::KvStore(const KvLayout& layout, int64_t num_blocks, uint8_t* base)
    : layout_(layout),
      num_blocks_(num_blocks),
      block_bytes_(layout.block_bytes()),
      layer_bytes_(layout.block_tokens * layout.groups[0].bytes_per_token_and_layer),
      base_(base) {}

KvStore::~KvStore() { munmap(base_, static_cast<size_t>(block_bytes_ * num_blocks_)); }

}  // namespace sluice
