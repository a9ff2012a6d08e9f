// Byte-level BPE: merges a piece's bytes into tokens by pair rank. Immutable; any thread.
//
// The pair's rank decides, not the merged string: some vocabulary entries are reachable only
// through one particular pair.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "tokenizer/merge_queue.h"

namespace sluice {

struct BpeMerge {
  TokenId left;
  TokenId right;
  TokenId result;
};

class Bpe {
 public:
  static constexpr TokenId kNoToken = -1;

  // byte_tokens[b] is the token of the single byte b, or kNoToken (such a byte is dropped; V2's
  // vocabulary lacks the bytes that never occur in UTF-8). `merges` in rank order, no pair twice.
  Bpe(const std::array<TokenId, 256>& byte_tokens, const std::vector<BpeMerge>& merges);

  // Working memory, kept from piece to piece.
  class Scratch {
    friend class Bpe;
    struct Symbol {
      TokenId token;
      int32_t previous;
      int32_t next;  // -1 at the end
    };
    std::vector<Symbol> symbols;
    HeapMergeQueue heap;
    RankMergeQueue ranks;
  };

  // Appends the piece's tokens. O(n log n) in its bytes, and close to linear for long pieces.
  // REQUIRES: piece.size() < 2^31.
  void Encode(absl::string_view piece, Scratch* scratch, std::vector<TokenId>* tokens) const;

 private:
  struct Rule {
    int32_t rank;
    TokenId result;
  };
  template <typename Queue>
  void Merge(std::vector<Scratch::Symbol>* symbols, Queue* queue) const;
  static uint64_t PairKey(TokenId left, TokenId right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  const std::array<TokenId, 256> byte_tokens_;
  absl::flat_hash_map<uint64_t, Rule> rules_;
};

}  // namespace sluice
