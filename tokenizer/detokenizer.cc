#include "tokenizer/detokenizer.h"

#include "common/utf8.h"

namespace sluice {

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string IncrementalDetokenizer::Add(TokenId id) {
  if (skip_special_tokens_ && tokenizer_.IsSpecial(id)) return "";
  const absl::string_view bytes = tokenizer_.TokenBytes(id);
  pending_.append(bytes.data(), bytes.size());
  const size_t complete = CompleteUtf8Prefix(pending_);
  std::string text;
  AppendUtf8Lossy(absl::string_view(pending_).substr(0, complete), &text);
  pending_.erase(0, complete);
  return text;
}

std::string IncrementalDetokenizer::Finish() {
  std::string text;
  AppendUtf8Lossy(pending_, &text);
  pending_.clear();
  return text;
}

}  // namespace sluice
