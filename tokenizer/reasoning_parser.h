// Splits an answer's text into reasoning (<think>...</think>) and content while it streams.
// Not thread-safe; one per choice. The result depends on the text alone, not on how it was cut.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "tokenizer/chat_encoder.h"

namespace sluice {

class ReasoningParser {
 public:
  explicit ReasoningParser(ChatEncoder::Start start);

  struct Delta {
    std::string reasoning;
    std::string content;
  };
  // Holds back what could be the beginning of a tag, and whitespace beside a tag (one "\n" after
  // <think>, "\n" before </think>, up to "\n\n" after it are dropped).
  Delta Add(absl::string_view text);
  // What is still held back, at the end. Without a closing tag all of it is reasoning.
  Delta Finish();
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State { kUndecided, kReasoning, kContent };
  State state_;
  std::string held_;
  bool at_reasoning_start_ = true;
  int newlines_to_drop_ = 0;  // at most, before the content
};

}  // namespace sluice
