#include "tokenizer/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace sluice {

void StopMatcher::Pattern::Advance(char c) {
  while (matched > 0 && text[matched] != c) matched = border[matched - 1];
  if (text[matched] == c) ++matched;
}

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : include_stop_(include_stop) {
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    Pattern pattern;
    pattern.text = std::move(stop);
    pattern.border.push_back(0);
    // The table is made by running the pattern over itself.
    for (size_t i = 1; i < pattern.text.size(); ++i) {
      pattern.Advance(pattern.text[i]);
      pattern.border.push_back(pattern.matched);
    }
    pattern.matched = 0;
    patterns_.push_back(std::move(pattern));
  }
}

StopMatcher::Result StopMatcher::Add(absl::string_view text) {
  Result result;
  if (stopped_) {
    result.stopped = true;
    return result;
  }
  held_.reserve(held_.size() + text.size());
  for (const char c : text) {
    held_.push_back(c);
    const Pattern* complete = nullptr;
    for (Pattern& pattern : patterns_) {
      pattern.Advance(c);
      if (complete == nullptr && pattern.matched == pattern.text.size()) complete = &pattern;
    }
    if (complete == nullptr) continue;
    stopped_ = true;
    if (!include_stop_) held_.resize(held_.size() - complete->text.size());
    result.text = std::exchange(held_, "");
    result.stopped = true;
    result.stop = complete->text;
    return result;
  }
  size_t keep = 0;
  for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.matched);
  result.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return result;
}

std::string StopMatcher::Finish() { return std::exchange(held_, ""); }

}  // namespace sluice
