// Cuts text into the pieces within which BPE merges: the regular expressions of DeepSeek's
// tokenizer.json files, written out as scanners over code points. Immutable; any thread.
//
// A tokenizer.json names its expressions as strings. Only the sequences below are accepted,
// character by character: an approximation would give other tokens without anybody noticing.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace sluice {

enum class PreTokenizerKind {
  kDeepSeekV3,   // V3, R1, V3.1 and later
  kDeepSeekLlm,  // deepseek-llm, V2, V2-Lite, V2.5
};

// The expressions of the Split steps, as they stand in tokenizer.json. Each step runs on every
// piece that the one before it left.
std::vector<std::string> PreTokenizerPatterns(PreTokenizerKind kind);

class PreTokenizer {
 public:
  explicit PreTokenizer(PreTokenizerKind kind) : kind_(kind) {}

  // Appends consecutive, non-empty pieces that together are `text`. Time is linear in its length.
  void Split(absl::string_view text, std::vector<absl::string_view>* pieces) const;

 private:
  const PreTokenizerKind kind_;
};

}  // namespace sluice
