// How many KV blocks a worker gets, and how long its sequences may become. A pure function; any
// thread.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace sluice {

struct KvSizingInput {
  int64_t block_bytes = 0;
  int64_t available_bytes = 0;          // memory that can still be taken
  int64_t max_position_embeddings = 0;  // of the model
  // As configured; 0: decide here.
  int64_t num_kv_blocks = 0;
  int64_t kv_cache_bytes = 0;
  int max_model_len = 0;
};

struct KvSizing {
  int64_t num_blocks = 0;
  int max_model_len = 0;
};

// Unless configured, the pool takes a modest share of the available memory (a quarter, at most 2
// GiB: a laptop runs other things too), but enough for one sequence of max_model_len and some
// slack. The pool always holds at least one sequence of max_model_len: when that is not configured,
// it is lowered to what fits; when it is, RESOURCE_EXHAUSTED says what to change.
absl::StatusOr<KvSizing> SizeKvCache(const KvSizingInput& input);

}  // namespace sluice
