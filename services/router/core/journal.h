// The answer of one request so far: every token handed to the client, in order, each exactly once.
// Tokens come from two workers over two streams (the first from the prefill worker, the rest from
// the decode worker), so they may arrive out of order; those ahead are held, bounded, until the gap
// closes. Owned by one RequestFlow; no threads, no clock.
#pragma once

#include <vector>

#include "absl/container/btree_map.h"
#include "common/ids.h"
#include "common/sampling_params.h"
#include "services/router/core/messages.h"

namespace sluice::router {

class Journal {
 public:
  explicit Journal(int max_held_tokens) : max_held_tokens_(max_held_tokens) {}

  enum class Outcome {
    kEmitted,    // `ready` got this token and those that waited for it
    kHeld,       // ahead of a gap
    kDuplicate,  // known already
    kTooFar,     // further ahead than may be held
  };
  Outcome Take(int index, SampledToken token, TokenList* ready);

  // Ids of the emitted tokens; the next index is tokens().size().
  const std::vector<TokenId>& tokens() const { return tokens_; }
  int size() const { return static_cast<int>(tokens_.size()); }
  bool has_gap() const { return !held_.empty(); }

  // A new attempt starts: what an old one sent ahead of the gap is computed again.
  void DropHeld() { held_.clear(); }

 private:
  const int max_held_tokens_;
  std::vector<TokenId> tokens_;
  // Index -> token, every index > tokens_.size(). At most max_held_tokens_.
  absl::btree_map<int, SampledToken> held_;
};

}  // namespace sluice::router
