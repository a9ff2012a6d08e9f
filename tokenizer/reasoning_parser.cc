#include "tokenizer/reasoning_parser.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"

namespace sluice {
namespace {

constexpr absl::string_view kThink = "<think>";
constexpr absl::string_view kEndThink = "</think>";
constexpr absl::string_view kNewlineEndThink = "\n</think>";
constexpr int kMaxNewlinesAfterReasoning = 2;

// How many of the last bytes of `text` could be the beginning of `tag`.
size_t PartialTagSize(absl::string_view text, absl::string_view tag) {
  for (size_t size = std::min(text.size(), tag.size() - 1); size > 0; --size) {
    if (absl::EndsWith(text, tag.substr(0, size))) return size;
  }
  return 0;
}

}  // namespace

ReasoningParser::ReasoningParser(ChatEncoder::Start start) {
  switch (start) {
    case ChatEncoder::Start::kInReasoning:
      state_ = State::kReasoning;
      break;
    case ChatEncoder::Start::kInContent:
      state_ = State::kContent;
      break;
    case ChatEncoder::Start::kModelDecides:
      state_ = State::kUndecided;
      break;
  }
}

ReasoningParser::Delta ReasoningParser::Add(absl::string_view text) {
  Delta delta;
  held_.append(text.data(), text.size());

  if (state_ == State::kUndecided) {
    if (absl::StartsWith(held_, kThink)) {
      held_.erase(0, kThink.size());
      state_ = State::kReasoning;
    } else if (absl::StartsWith(kThink, held_)) {
      return delta;  // could still become the tag
    } else {
      state_ = State::kContent;
    }
  }

  if (state_ == State::kReasoning) {
    if (at_reasoning_start_ && !held_.empty()) {
      if (held_[0] == '\n') held_.erase(0, 1);
      at_reasoning_start_ = false;
    }
    const size_t tag = absl::string_view(held_).find(kEndThink);
    if (tag == absl::string_view::npos) {
      const size_t keep =
          std::max(PartialTagSize(held_, kEndThink), PartialTagSize(held_, kNewlineEndThink));
      delta.reasoning = held_.substr(0, held_.size() - keep);
      held_.erase(0, held_.size() - keep);
      return delta;
    }
    delta.reasoning = held_.substr(0, tag);
    if (absl::EndsWith(delta.reasoning, "\n")) delta.reasoning.pop_back();
    held_.erase(0, tag + kEndThink.size());
    state_ = State::kContent;
    newlines_to_drop_ = kMaxNewlinesAfterReasoning;
  }

  size_t begin = 0;
  while (newlines_to_drop_ > 0 && begin < held_.size()) {
    newlines_to_drop_ = held_[begin] == '\n' ? newlines_to_drop_ - 1 : 0;
    if (held_[begin] == '\n') ++begin;
  }
  delta.content = held_.substr(begin);
  held_.clear();
  return delta;
}

ReasoningParser::Delta ReasoningParser::Finish() {
  Delta delta;
  (state_ == State::kReasoning ? delta.reasoning : delta.content) = std::exchange(held_, "");
  return delta;
}

}  // namespace sluice
