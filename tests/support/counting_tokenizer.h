// A tokenizer that counts the bytes it was asked to encode; the work is another's. Thread-safe.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace sluice {

class CountingTokenizer : public Tokenizer {
 public:
  explicit CountingTokenizer(std::unique_ptr<Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}

  int64_t encoded_bytes() const { return encoded_bytes_; }

  std::vector<TokenId> EncodeUpTo(absl::string_view text, AddedTokens added,
                                  size_t max_tokens) const override {
    encoded_bytes_ += static_cast<int64_t>(text.size());
    return tokenizer_->EncodeUpTo(text, added, max_tokens);
  }
  std::vector<TokenId> EncodePromptUpTo(absl::string_view text, size_t max_tokens) const override {
    encoded_bytes_ += static_cast<int64_t>(text.size());
    return tokenizer_->EncodePromptUpTo(text, max_tokens);
  }
  absl::string_view TokenBytes(TokenId id) const override { return tokenizer_->TokenBytes(id); }
  size_t max_token_bytes() const override { return tokenizer_->max_token_bytes(); }
  std::string Decode(absl::Span<const TokenId> ids, bool skip_special_tokens) const override {
    return tokenizer_->Decode(ids, skip_special_tokens);
  }
  bool IsSpecial(TokenId id) const override { return tokenizer_->IsSpecial(id); }
  bool IsAdded(TokenId id) const override { return tokenizer_->IsAdded(id); }
  std::optional<TokenId> AddedTokenId(absl::string_view text) const override {
    return tokenizer_->AddedTokenId(text);
  }
  bool IsDefined(TokenId id) const override { return tokenizer_->IsDefined(id); }
  TokenId vocab_size() const override { return tokenizer_->vocab_size(); }
  std::optional<TokenId> bos_token_id() const override { return tokenizer_->bos_token_id(); }
  std::optional<TokenId> eos_token_id() const override { return tokenizer_->eos_token_id(); }
  const std::string& chat_template() const override { return tokenizer_->chat_template(); }

 private:
  const std::unique_ptr<Tokenizer> tokenizer_;
  mutable std::atomic<int64_t> encoded_bytes_{0};
};

}  // namespace sluice
