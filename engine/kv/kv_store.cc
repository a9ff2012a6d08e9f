#include "engine/kv/kv_store.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace sluice {

absl::StatusOr<std::unique_ptr<KvStore>> KvStore::Create(const KvLayout& layout,
                                                         int64_t num_blocks) {
  if (num_blocks <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("KV store of ", num_blocks, " blocks"));
  }
  if (layout.groups.size() != 1) {
    return absl::UnimplementedError(
        absl::StrCat("KV layout with ", layout.groups.size(), " cache groups; this store has one"));
  }
  int64_t size_bytes;
  if (__builtin_mul_overflow(layout.block_bytes(), num_blocks, &size_bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV store: ", num_blocks, " blocks of ", layout.block_bytes(), " bytes"));
  }
  // Anonymous memory is page-aligned and zero; pages are taken from the system on first touch.
  void* base = mmap(nullptr, static_cast<size_t>(size_bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV store: cannot map ", size_bytes, " bytes (", num_blocks, " blocks of ",
                     layout.block_bytes(), "): ", std::strerror(errno)));
  }
  madvise(base, static_cast<size_t>(size_bytes), MADV_HUGEPAGE);  // a hint; refusal is harmless
  return std::unique_ptr<KvStore>(new KvStore(layout, num_blocks, static_cast<uint8_t*>(base)));
}

KvStore::KvStore(const KvLayout& layout, int64_t num_blocks, uint8_t* base)
    : layout_(layout),
      num_blocks_(num_blocks),
      block_bytes_(layout.block_bytes()),
      layer_bytes_(layout.block_tokens * layout.groups[0].bytes_per_token_and_layer),
      base_(base) {}

KvStore::~KvStore() {
  SLUICE_CHECK(munmap(base_, static_cast<size_t>(num_blocks_ * block_bytes_)) == 0);
}

}  // namespace sluice
