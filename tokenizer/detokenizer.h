// Turns one request's tokens into text as they come. Not thread-safe; one per choice.
#pragma once

#include <string>

#include "tokenizer/tokenizer.h"

namespace sluice {

// The concatenation of all results equals Tokenizer::Decode of all ids. At most 3 bytes are held
// back: those that begin a character whose rest has not come.
class IncrementalDetokenizer {
 public:
  // `tokenizer` must outlive this.
  IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens);

  // Text that became complete with this token; perhaps "".
  std::string Add(TokenId id);
  // What is still held back, as U+FFFD. Call once at the end.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_tokens_;
  std::string pending_;  // bytes of an incomplete character
};

}  // namespace sluice
