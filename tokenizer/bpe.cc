#include "tokenizer/bpe.h"

#include <algorithm>

namespace sluice {

Bpe::Bpe(const std::array<TokenId, 256>& byte_tokens, const std::vector<BpeMerge>& merges)
    : byte_tokens_(byte_tokens) {
  rules_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    rules_.emplace(PairKey(merges[rank].left, merges[rank].right),
                   Rule{static_cast<int32_t>(rank), merges[rank].result});
  }
}

void Bpe::Encode(absl::string_view piece, Scratch* scratch, std::vector<TokenId>* tokens) const {
  std::vector<Scratch::Symbol>& symbols = scratch->symbols;
  std::vector<Scratch::Candidate>& heap = scratch->heap;
  symbols.clear();
  heap.clear();
  for (const char c : piece) {
    const TokenId token = byte_tokens_[static_cast<uint8_t>(c)];
    if (token == kNoToken) continue;
    const int32_t position = static_cast<int32_t>(symbols.size());
    if (position > 0) symbols.back().next = position;
    symbols.push_back({token, position - 1, -1});
  }
  if (symbols.empty()) return;

  // Lowest rank first, leftmost on ties.
  const auto after = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto add_candidate = [&](int32_t position) {
    if (position < 0 || symbols[position].next < 0) return false;
    const TokenId left = symbols[position].token;
    const TokenId right = symbols[symbols[position].next].token;
    const auto rule = rules_.find(PairKey(left, right));
    if (rule == rules_.end()) return false;
    heap.push_back({rule->second.rank, position, left, right});
    return true;
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) add_candidate(static_cast<int32_t>(i));
  std::make_heap(heap.begin(), heap.end(), after);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), after);
    const Scratch::Candidate best = heap.back();
    heap.pop_back();
    // An earlier merge may have taken either symbol (a merged-away symbol's token is kNoToken).
    Scratch::Symbol& left = symbols[best.position];
    if (left.token != best.left || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    if (right.token != best.right) continue;

    left.token = rules_.find(PairKey(best.left, best.right))->second.result;
    right.token = kNoToken;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    if (add_candidate(left.previous)) std::push_heap(heap.begin(), heap.end(), after);
    if (add_candidate(best.position)) std::push_heap(heap.begin(), heap.end(), after);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) tokens->push_back(symbols[i].token);
}

}  // namespace sluice
