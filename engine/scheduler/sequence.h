// One sequence in an engine: what was asked, where it stands, and which blocks hold its KV.
// Owner: the scheduler; engine thread only.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/block_hash.h"
#include "common/ids.h"
#include "common/sampling_params.h"

namespace sluice {

struct SequenceKey {
  RequestId request;
  Attempt attempt;
  friend auto operator<=>(const SequenceKey&, const SequenceKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const SequenceKey& key) {
    return H::combine(std::move(h), key.request, key.attempt);
  }
};

// Blocks that are held for somebody outside, beyond the life of any sequence. 0 is none.
using PinId = StrongId<struct PinIdTag, uint64_t>;

struct SequenceInput {
  SequenceKey key;
  std::vector<TokenId> tokens;  // prompt, then output tokens the client already has
  int num_output_tokens = 0;    // how many of `tokens` are output
  SamplingParams sampling;
  std::string tenant_salt;
};

enum class SequenceKind : uint8_t {
  kPrefill,   // computes its prompt and one token, then waits for its receiver
  kRun,       // computes its prompt and its answer
  kReserved,  // its prompt's KV comes from outside; then computes its answer
};

// kPrefill: waiting -> prefilling -> pinned.
// kRun: waiting -> prefilling -> decoding, and back to waiting when preempted.
// kReserved: reserved (-> quarantined) -> decoding.
enum class SequencePhase : uint8_t {
  kWaiting,      // holds no blocks
  kPrefilling,   // holds blocks for all of `tokens`; [0, num_computed) are computed
  kDecoding,     // all but the last of `tokens` are computed
  kPinned,       // prompt computed, first token sampled; blocks are `sending`
  kReserved,     // blocks beyond the cached prefix are `receiving`
  kQuarantined,  // as kReserved, but the transfer is dead and may still write
};

const char* SequencePhaseName(SequencePhase phase);

struct Sequence {
  // Constant after construction.
  SequenceKey key;
  SequenceKind kind = SequenceKind::kRun;
  SamplingParams sampling;
  int num_prompt_tokens = 0;  // of the request: output tokens the client already had do not count
  int num_input_tokens = 0;   // of this attempt: prompt and the output it came with
  uint64_t arrival = 0;       // dense; smaller is older
  int64_t arrival_step = 0;

  SequencePhase phase = SequencePhase::kWaiting;
  std::vector<TokenId> tokens;  // [num_input_tokens], then what was sampled here
  int num_computed = 0;         // tokens whose KV is in the blocks (or was found there)
  // Prefix tokens found in the cache when the sequence was first admitted; a multiple of
  // kBlockTokens.
  int num_cached_tokens = 0;
  bool was_admitted = false;
  int num_reported = 0;  // kPrefill: tokens already reported as computed chunks

  std::vector<BlockId> block_table;     // block i holds positions [i * 64, (i + 1) * 64)
  std::vector<BlockHash> block_hashes;  // of full blocks of `tokens`; block_hashes[i] names block i
  BlockHash root_hash;
  int num_published_blocks = 0;      // leading blocks that were offered to the prefix index
  int64_t promised_blocks_left = 0;  // growth that admission of others leaves alone

  // Its place among the prompts; see prefill_order.h.
  int num_prefill_tokens = 0;  // of the prompt, those not expected (waiting) or found in the cache
  int64_t score = 0;
  int num_planned = 0;  // of the present plan

  int num_output_tokens() const { return static_cast<int>(tokens.size()) - num_prompt_tokens; }
  int num_uncomputed() const { return static_cast<int>(tokens.size()) - num_computed; }
};

}  // namespace sluice
