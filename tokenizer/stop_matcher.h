// Finds stop strings in text that comes in pieces. Not thread-safe; one per choice.
//
// The result depends on the text alone, not on how it was cut: an answer stops at the first byte
// that completes any of the strings. If that byte completes several, the first listed counts.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace sluice {

class StopMatcher {
 public:
  // Empty stop strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);

  struct Result {
    std::string text;      // safe to emit
    bool stopped = false;  // a stop string was met; nothing may follow
    std::string stop;      // which one
  };
  // Holds back the longest suffix that could begin a stop string. After a stop every call returns
  // nothing but `stopped`.
  Result Add(absl::string_view text);
  // What was held back, at the end without a stop.
  std::string Finish();

 private:
  // Knuth-Morris-Pratt, so that each byte is looked at once however long the strings are.
  struct Pattern {
    std::string text;
    std::vector<size_t> border;  // of each prefix: its longest proper prefix that is also a suffix
    size_t matched = 0;          // bytes of `text` that the input ends with

    void Advance(char c);
  };

  std::vector<Pattern> patterns_;
  const bool include_stop_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace sluice
