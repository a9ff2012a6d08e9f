// Finds stop strings in text that comes in pieces. Not thread-safe; one per choice.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace sluice {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);

  struct Result {
    std::string text;      // safe to emit
    bool stopped = false;  // a stop string was met; nothing may follow
    std::string stop;      // which one
  };
  // Holds back the longest suffix that could begin a stop string. The earliest match wins; at the same
  // position the first listed.
  Result Add(absl::string_view text);
  // What was held back, at the end without a stop.
  std::string Finish();

 private:
  const std::vector<std::string> stops_;
  const bool include_stop_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace sluice
