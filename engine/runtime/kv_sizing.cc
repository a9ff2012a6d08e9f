#include "engine/runtime/kv_sizing.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/block_hash.h"

namespace sluice {
namespace {

constexpr int64_t kDefaultShareMaxBytes = int64_t{2} << 30;
constexpr int64_t kSlackBlocks = 16;
constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max() - 1;  // BlockId is 32 bits wide

}  // namespace

absl::StatusOr<KvSizing> SizeKvCache(const KvSizingInput& input) {
  if (input.max_model_len > input.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "scheduler.max_model_len (", input.max_model_len,
        ") exceeds the model's max_position_embeddings (", input.max_position_embeddings, ")"));
  }
  const bool length_is_configured = input.max_model_len > 0;
  int64_t max_model_len =
      length_is_configured
          ? input.max_model_len
          : std::min<int64_t>(input.max_position_embeddings, std::numeric_limits<int32_t>::max());
  const int64_t blocks_of_one = (max_model_len + kBlockTokens - 1) / kBlockTokens;
  const int64_t affordable_blocks = input.available_bytes / input.block_bytes;

  int64_t num_blocks = 0;
  if (input.num_kv_blocks > 0) {
    num_blocks = input.num_kv_blocks;
  } else if (input.kv_cache_bytes > 0) {
    num_blocks = input.kv_cache_bytes / input.block_bytes;
  } else {
    num_blocks = std::min(input.available_bytes / 4, kDefaultShareMaxBytes) / input.block_bytes;
    const int64_t enough_for_one = blocks_of_one + kSlackBlocks;
    // One long sequence may take more than the modest share, if configured or at least cheap.
    if (num_blocks < enough_for_one &&
        (length_is_configured || enough_for_one <= affordable_blocks / 2)) {
      num_blocks = enough_for_one;
    }
  }
  num_blocks = std::min(num_blocks, kMaxBlocks);

  if (num_blocks < 1 && affordable_blocks >= 1) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "KV cache: not one block of ", input.block_bytes, " bytes is asked for: raise kv_cache"));
  }
  if (num_blocks < 1 || num_blocks > affordable_blocks) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "KV cache: ", num_blocks, " blocks of ", input.block_bytes, " bytes are asked for, but ",
        input.available_bytes, " bytes of memory are available (room for ", affordable_blocks,
        " blocks): lower kv_cache, num_kv_blocks, scheduler.max_model_len or "
        "scheduler.max_num_batched_tokens"));
  }
  if (num_blocks < blocks_of_one) {
    if (length_is_configured) {
      return absl::ResourceExhaustedError(
          absl::StrCat("KV cache: ", num_blocks, " blocks hold ", num_blocks * kBlockTokens,
                       " tokens, fewer than scheduler.max_model_len (", max_model_len,
                       "): raise kv_cache or num_kv_blocks, or lower max_model_len"));
    }
    max_model_len = num_blocks * kBlockTokens;
  }
  return KvSizing{num_blocks, static_cast<int>(max_model_len)};
}

}  // namespace sluice
