#include "tokenizer/bpe.h"

namespace sluice {
namespace {

// From here on a heap no longer lies in the nearest cache.
constexpr size_t kLongPieceBytes = 4096;

}  // namespace

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
  symbols.clear();
  for (const char c : piece) {
    const TokenId token = byte_tokens_[static_cast<uint8_t>(c)];
    if (token == kNoToken) continue;
    const int32_t position = static_cast<int32_t>(symbols.size());
    if (position > 0) symbols.back().next = position;
    symbols.push_back({token, position - 1, -1});
  }
  if (symbols.empty()) return;
  if (piece.size() < kLongPieceBytes) {
    Merge(&symbols, &scratch->heap);
  } else {
    Merge(&symbols, &scratch->ranks);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) tokens->push_back(symbols[i].token);
}

template <typename Queue>
void Bpe::Merge(std::vector<Scratch::Symbol>* all, Queue* queue) const {
  std::vector<Scratch::Symbol>& symbols = *all;
  queue->Clear();
  // Calls `add` if the symbols at `position` and behind it can be merged.
  const auto consider = [&](int32_t position, auto add) {
    if (position < 0 || symbols[position].next < 0) return;
    const TokenId left = symbols[position].token;
    const TokenId right = symbols[symbols[position].next].token;
    const auto rule = rules_.find(PairKey(left, right));
    if (rule != rules_.end()) add(MergeCandidate{rule->second.rank, position, left, right});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    consider(static_cast<int32_t>(i), [queue](const MergeCandidate& c) { queue->Append(c); });
  }
  queue->Order();

  const auto push = [queue](const MergeCandidate& candidate) { queue->Push(candidate); };
  while (!queue->empty()) {
    const MergeCandidate best = queue->Pop();
    // An earlier merge may have taken either symbol (a merged-away symbol's token is kNoToken).
    Scratch::Symbol& left = symbols[best.position];
    if (left.token != best.left || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    if (right.token != best.right) continue;

    left.token = rules_.find(PairKey(best.left, best.right))->second.result;
    right.token = kNoToken;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    consider(left.previous, push);
    consider(best.position, push);
  }
}

}  // namespace sluice
