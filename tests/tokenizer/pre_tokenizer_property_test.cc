// The scanners against a real regular expression engine running the very strings of tokenizer.json.
// Characters are drawn from a set whose classes have not changed between Unicode versions.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace sluice {
namespace {

class Regex {
 public:
  explicit Regex(const std::string& pattern) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY, &error, &offset, nullptr);
    if (code_ == nullptr) throw std::runtime_error("bad pattern " + pattern);
    match_ = pcre2_match_data_create_from_pattern(code_, nullptr);
  }
  ~Regex() {
    pcre2_match_data_free(match_);
    pcre2_code_free(code_);
  }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Matches and the stretches between them.
  void SplitIsolated(const std::string& piece, std::vector<std::string>* out) const {
    size_t done = 0;
    while (done < piece.size() && pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(piece.data()),
                                              piece.size(), done, 0, match_, nullptr) > 0) {
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match_);
      if (range[0] > done) out->push_back(piece.substr(done, range[0] - done));
      out->push_back(piece.substr(range[0], range[1] - range[0]));
      done = range[1];
    }
    if (done < piece.size()) out->push_back(piece.substr(done));
  }

 private:
  pcre2_code* code_;
  pcre2_match_data* match_;
};

std::vector<std::string> SplitByRegex(const std::vector<std::string>& patterns,
                                      const std::string& text) {
  std::vector<std::string> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const std::string& pattern : patterns) {
    const Regex regex(pattern);
    std::vector<std::string> finer;
    for (const std::string& piece : pieces) regex.SplitIsolated(piece, &finer);
    pieces = finer;
  }
  return pieces;
}

std::vector<std::string> SplitByScanner(PreTokenizerKind kind, const std::string& text) {
  std::vector<absl::string_view> pieces;
  PreTokenizer(kind).Split(text, &pieces);
  return std::vector<std::string>(pieces.begin(), pieces.end());
}

std::string AnyText() {
  static const std::vector<std::string> characters = {
      " ",    " ",  "  ", "\n", "\r", "\r\n",   "\t",     "\u00A0", "\u3000", "\u2028", "\x01",
      "\x7F", "a",  "Z",  "é",  "ß",  "Ω",      "д",      "א",      "ع",      "ー",     "か",
      "カ",   "中", "文", "한", "क",  "ि",      "\u0301", "\u200D", "\u20E3", "0",      "7",
      "٣",    "½",  "Ⅷ",  ".",  ",",  "'",      "!",      "<",      "$",      "+",      "_",
      "«",    "。", "，", "€",  "😀",  "\uFFFD", "\u0085", "\u2026", "\u2019", "\u212A", "\u1F7D"};
  std::string text;
  const auto picks =
      *rc::gen::container<std::vector<size_t>>(rc::gen::inRange<size_t>(0, characters.size()));
  for (const size_t pick : picks) text += characters[pick];
  return text;
}

RC_GTEST_PROP(PreTokenizerProperty, DeepSeekV3IsTheRegularExpressions, ()) {
  const std::string text = AnyText();
  RC_ASSERT(SplitByScanner(PreTokenizerKind::kDeepSeekV3, text) ==
            SplitByRegex(PreTokenizerPatterns(PreTokenizerKind::kDeepSeekV3), text));
}

RC_GTEST_PROP(PreTokenizerProperty, DeepSeekLlmIsTheRegularExpressions, ()) {
  const std::string text = AnyText();
  std::vector<std::string> patterns = PreTokenizerPatterns(PreTokenizerKind::kDeepSeekLlm);
  patterns.push_back("\\p{N}");  // Digits(individual_digits)
  RC_ASSERT(SplitByScanner(PreTokenizerKind::kDeepSeekLlm, text) == SplitByRegex(patterns, text));
}

// Each of these made some expression look again and again at the same stretch. Linear is well under
// a second, quadratic hours; the bound leaves room for sanitizers on a busy machine.
TEST(PreTokenizerTime, IsLinear) {
  const std::vector<std::string> units = {" ", "\n", "a", "中", "1", "\x01", ".", " \x01", "<"};
  for (const PreTokenizerKind kind :
       {PreTokenizerKind::kDeepSeekV3, PreTokenizerKind::kDeepSeekLlm}) {
    for (const std::string& unit : units) {
      std::string text;
      while (text.size() < 2000000) text += unit;
      text += "\x01";
      const auto begin = std::chrono::steady_clock::now();
      std::vector<absl::string_view> pieces;
      PreTokenizer(kind).Split(text, &pieces);
      EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60)) << unit;
    }
  }
}

}  // namespace
}  // namespace sluice
