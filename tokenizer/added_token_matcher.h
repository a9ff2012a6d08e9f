// Finds added tokens ("<｜User｜>") in raw text, before the pre-tokenizer: leftmost, and of those
// the longest. Immutable; any thread.
//
// As in Hugging Face's tokenizers there are two passes: tokens with normalized=false first, over
// all of the text, then the others in what is left.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"

namespace sluice {

class AddedTokenMatcher {
 public:
  AddedTokenMatcher() : passes_(2) {}

  // REQUIRES: `text` is not empty. Only before the first Split.
  void Add(absl::string_view text, bool normalized, TokenId id);

  struct Part {
    absl::string_view text;
    TokenId added_token = -1;  // -1: ordinary text
  };
  // Consecutive, non-empty parts that together are `text`.
  std::vector<Part> Split(absl::string_view text) const;

 private:
  // A trie over bytes. The root is node 0.
  class Trie {
   public:
    void Add(absl::string_view text, TokenId id);
    // The longest token that `text` begins with: its id and size, or {-1, 0}.
    std::pair<TokenId, size_t> LongestPrefix(absl::string_view text) const;

   private:
    std::vector<TokenId> token_of_node_ = {-1};
    absl::flat_hash_map<uint64_t, uint32_t> edges_;  // node << 8 | byte
    std::array<bool, 256> is_first_byte_{};
  };

  std::vector<Trie> passes_;
};

}  // namespace sluice
