#include "tokenizer/added_token_matcher.h"

#include <utility>

namespace sluice {

void AddedTokenMatcher::Trie::Add(absl::string_view text, TokenId id) {
  is_first_byte_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (const char c : text) {
    const uint64_t edge = uint64_t{node} << 8 | static_cast<uint8_t>(c);
    auto [it, inserted] = edges_.try_emplace(edge, static_cast<uint32_t>(token_of_node_.size()));
    if (inserted) token_of_node_.push_back(-1);
    node = it->second;
  }
  token_of_node_[node] = id;
}

std::pair<TokenId, size_t> AddedTokenMatcher::Trie::LongestPrefix(absl::string_view text) const {
  std::pair<TokenId, size_t> longest = {-1, 0};
  if (text.empty() || !is_first_byte_[static_cast<uint8_t>(text[0])]) return longest;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<uint8_t>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (token_of_node_[node] >= 0) longest = {token_of_node_[node], i + 1};
  }
  return longest;
}

void AddedTokenMatcher::Add(absl::string_view text, bool normalized, TokenId id) {
  passes_[normalized ? 1 : 0].Add(text, id);
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::Split(absl::string_view text) const {
  std::vector<Part> parts;
  if (!text.empty()) parts.push_back({text, -1});
  for (const Trie& trie : passes_) {
    std::vector<Part> finer;
    finer.reserve(parts.size());
    for (const Part& part : parts) {
      if (part.added_token >= 0) {
        finer.push_back(part);
        continue;
      }
      size_t begin = 0;  // of the ordinary text not yet emitted
      for (size_t i = 0; i < part.text.size();) {
        const auto [id, size] = trie.LongestPrefix(part.text.substr(i));
        if (id < 0) {
          ++i;
          continue;
        }
        if (i > begin) finer.push_back({part.text.substr(begin, i - begin), -1});
        finer.push_back({part.text.substr(i, size), id});
        i += size;
        begin = i;
      }
      if (begin < part.text.size()) finer.push_back({part.text.substr(begin), -1});
    }
    parts = std::move(finer);
  }
  return parts;
}

}  // namespace sluice
