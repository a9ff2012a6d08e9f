#include "tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "common/utf8.h"
#include "tokenizer/unicode_classes.h"

namespace sluice {
namespace {

struct Char {
  char32_t code_point;
  uint32_t offset;  // of its first byte in the text
  uint8_t classes;  // UnicodeClass bits
};

// Characters [begin, end) of the text.
struct Range {
  size_t begin;
  size_t end;
  bool empty() const { return begin == end; }
};

using Chars = std::vector<Char>;

// Split with behaviour "Isolated": every match is a piece, and so is every stretch between matches.
// `find(range)` is the leftmost match within the range, looking at nothing beyond it; empty: none.
template <typename Find>
std::vector<Range> SplitIsolated(const std::vector<Range>& pieces, const Find& find) {
  std::vector<Range> result;
  result.reserve(pieces.size());
  for (Range rest : pieces) {
    while (!rest.empty()) {
      const Range match = find(rest);
      if (match.empty()) break;
      if (match.begin > rest.begin) result.push_back({rest.begin, match.begin});
      result.push_back(match);
      rest.begin = match.end;
    }
    if (!rest.empty()) result.push_back(rest);
  }
  return result;
}

// Tries an anchored matcher, `match(begin, end)` -> end of the match or `begin`, at each position.
template <typename Match>
Range FindFirst(Range range, const Match& match) {
  for (size_t begin = range.begin; begin < range.end; ++begin) {
    const size_t end = match(begin, range.end);
    if (end > begin) return {begin, end};
  }
  return {range.end, range.end};
}

// The end of the longest run from `begin` whose characters satisfy `predicate`.
template <typename Predicate>
size_t RunEnd(const Chars& chars, size_t begin, size_t end, const Predicate& predicate) {
  while (begin < end && predicate(chars[begin])) ++begin;
  return begin;
}

bool IsAsciiLetter(const Char& c) {
  return (c.code_point >= 'A' && c.code_point <= 'Z') ||
         (c.code_point >= 'a' && c.code_point <= 'z');
}
bool IsAsciiPunctuation(const Char& c) {
  return c.code_point > 0x20 && c.code_point < 0x7F && !IsAsciiLetter(c) &&
         !(c.code_point >= '0' && c.code_point <= '9');
}
bool IsNewline(const Char& c) { return c.code_point == '\r' || c.code_point == '\n'; }
bool IsSpace(const Char& c) { return (c.classes & kWhiteSpace) != 0; }
bool IsNumber(const Char& c) { return (c.classes & kNumber) != 0; }
bool IsLetterOrMark(const Char& c) { return (c.classes & (kLetter | kMark)) != 0; }
bool IsPunctuationOrSymbol(const Char& c) { return (c.classes & (kPunctuation | kSymbol)) != 0; }
bool InRange(const Char& c, char32_t first, char32_t last) {
  return c.code_point >= first && c.code_point <= last;
}

// ---- deepseek-v3 ----

bool IsHanOrKana(const Char& c) { return InRange(c, 0x4E00, 0x9FA5) || InRange(c, 0x3040, 0x30FF); }

// The third expression, alternative by alternative in its order; the first that matches wins.
size_t MatchV3Word(const Chars& chars, size_t begin, size_t end) {
  const Char& first = chars[begin];
  const size_t second = begin + 1;
  // [ASCII punctuation][A-Za-z]+
  if (IsAsciiPunctuation(first)) {
    const size_t letters_end = RunEnd(chars, second, end, IsAsciiLetter);
    if (letters_end > second) return letters_end;
  }
  // [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
  if (!IsNewline(first) && (first.classes & (kLetter | kPunctuation | kSymbol)) == 0) {
    const size_t letters_end = RunEnd(chars, second, end, IsLetterOrMark);
    if (letters_end > second) return letters_end;
  }
  if (IsLetterOrMark(first)) return RunEnd(chars, begin, end, IsLetterOrMark);
  //  ?[\p{P}\p{S}]+[\r\n]*
  const size_t signs_begin = first.code_point == ' ' ? second : begin;
  const size_t signs_end = RunEnd(chars, signs_begin, end, IsPunctuationOrSymbol);
  if (signs_end > signs_begin) return RunEnd(chars, signs_end, end, IsNewline);
  if (!IsSpace(first)) return begin;
  const size_t space_end = RunEnd(chars, begin, end, IsSpace);
  // \s*[\r\n]+ : through the last line break of the run.
  for (size_t i = space_end; i > begin; --i) {
    if (IsNewline(chars[i - 1])) return i;
  }
  // \s+(?!\S) : all of the run at the end, else all but its last character; or \s+ if that is
  // nothing.
  return space_end == end || space_end == second ? space_end : space_end - 1;
}

std::vector<Range> SplitV3(const Chars& chars) {
  std::vector<Range> pieces = {{0, chars.size()}};
  // \p{N}{1,3}
  pieces = SplitIsolated(pieces, [&](Range range) {
    return FindFirst(range, [&](size_t begin, size_t end) {
      return RunEnd(chars, begin, std::min(end, begin + 3), IsNumber);
    });
  });
  pieces = SplitIsolated(pieces, [&](Range range) {
    return FindFirst(
        range, [&](size_t begin, size_t end) { return RunEnd(chars, begin, end, IsHanOrKana); });
  });
  return SplitIsolated(pieces, [&](Range range) {
    return FindFirst(range,
                     [&](size_t begin, size_t end) { return MatchV3Word(chars, begin, end); });
  });
}

// ---- deepseek-llm ----

struct CodePointRange {
  char32_t first;
  char32_t last;
};

// The letters of the second expression in its order: letters with case, by a Unicode version of
// their own. Numbers and not characters, because some of them change under NFC normalisation of a
// source file.
constexpr CodePointRange kLlmLetters[] = {
    {'A', 'Z'},         {'a', 'z'},         {0xB5, 0xB5},       {0xC0, 0xD6},
    {0xD8, 0xF6},       {0xF8, 0x1BA},      {0x1BC, 0x1BF},     {0x1C4, 0x293},
    {0x295, 0x2AF},     {0x370, 0x373},     {0x376, 0x376},     {0x377, 0x377},
    {0x37B, 0x37D},     {0x37F, 0x37F},     {0x386, 0x386},     {0x388, 0x38A},
    {0x38C, 0x38C},     {0x38E, 0x3A1},     {0x3A3, 0x3F5},     {0x3F7, 0x481},
    {0x48A, 0x52F},     {0x531, 0x556},     {0x10A0, 0x10C5},   {0x13A0, 0x13F5},
    {0x13F8, 0x13FD},   {0x1C90, 0x1CBA},   {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},
    {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},   {0x1E00, 0x1F15},   {0x1F18, 0x1F1D},
    {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},   {0x1F59, 0x1F59},
    {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},
    {0x1FB6, 0x1FBC},   {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},   {0x1FC6, 0x1FCC},
    {0x1FD0, 0x1FD3},   {0x1FD6, 0x1FDB},   {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},
    {0x1FF6, 0x1FFC},   {0x2102, 0x2102},   {0x2107, 0x2107},   {0x210A, 0x2113},
    {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},   {0x2126, 0x2126},
    {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},   {0x2139, 0x2139},
    {0x213C, 0x213F},   {0x2145, 0x2149},   {0x214E, 0x214E},   {0x2183, 0x2183},
    {0x2184, 0x2184},   {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},   {0x2CEB, 0x2CEE},
    {0x2CF2, 0x2CF2},   {0x2CF3, 0x2CF3},   {0xA640, 0xA66D},   {0xA680, 0xA69B},
    {0xA722, 0xA76F},   {0xA771, 0xA787},   {0xA78B, 0xA78E},   {0xAB70, 0xABBF},
    {0xFB00, 0xFB06},   {0xFB13, 0xFB17},   {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},
    {0x10400, 0x1044F}, {0x104B0, 0x104D3}, {0x104D8, 0x104FB}, {0x10C80, 0x10CB2},
    {0x10CC0, 0x10CF2}, {0x118A0, 0x118DF}, {0x1E900, 0x1E943},
};
constexpr CodePointRange kLlmPunctuation[] = {
    {'!', '/'}, {':', '~'}, {0xFF01, 0xFF0F}, {0xFF1A, 0xFF5E}, {0x2018, 0x201F}, {0x3000, 0x3002},
};
constexpr CodePointRange kLlmHanOrHangul[] = {{0x4E00, 0x9FA5}, {0x0800, 0x4E00}, {0xAC00, 0xD7FF}};

template <size_t N>
bool InAnyRange(const Char& c, const CodePointRange (&ranges)[N]) {
  return std::any_of(std::begin(ranges), std::end(ranges),
                     [&](const CodePointRange& r) { return InRange(c, r.first, r.last); });
}

template <size_t N>
std::string CharacterClass(const CodePointRange (&ranges)[N]) {
  std::string result = "[";
  for (const CodePointRange& range : ranges) {
    AppendUtf8(range.first, &result);
    if (range.first == range.last) continue;
    result += '-';
    AppendUtf8(range.last, &result);
  }
  return result + "]+";
}

bool IsLlmLetter(const Char& c) {
  if (c.code_point < 0x80) return IsAsciiLetter(c);
  return InAnyRange(c, kLlmLetters);
}
bool IsLlmPunctuation(const Char& c) { return InAnyRange(c, kLlmPunctuation); }
bool IsLlmHanOrHangul(const Char& c) { return InAnyRange(c, kLlmHanOrHangul); }

// \s?[class]+
template <typename Predicate>
size_t MatchSpaceAndRun(const Chars& chars, size_t begin, size_t end, const Predicate& predicate) {
  // \s? gives back what it took if no run follows: U+3000 is white space and in the class.
  if (IsSpace(chars[begin])) {
    const size_t run_end = RunEnd(chars, begin + 1, end, predicate);
    if (run_end > begin + 1) return run_end;
  }
  return RunEnd(chars, begin, end, predicate);
}

std::vector<Range> SplitLlm(const Chars& chars) {
  std::vector<Range> pieces = {{0, chars.size()}};
  const auto split = [&](const auto& match) {
    pieces = SplitIsolated(pieces, [&](Range range) { return FindFirst(range, match); });
  };
  const auto single = [&](const auto& predicate) {
    return [&chars, &predicate](size_t begin, size_t) {
      return predicate(chars[begin]) ? begin + 1 : begin;
    };
  };
  split(single(IsNewline));
  split([&](size_t begin, size_t end) { return MatchSpaceAndRun(chars, begin, end, IsLlmLetter); });
  split([&](size_t begin, size_t end) {
    return MatchSpaceAndRun(chars, begin, end, IsLlmPunctuation);
  });
  // \s+$ : searched from the end, which keeps a long run in the middle from being tried at each
  // position.
  pieces = SplitIsolated(pieces, [&](Range range) {
    size_t begin = range.end;
    while (begin > range.begin && IsSpace(chars[begin - 1])) --begin;
    return Range{begin, range.end};
  });
  split([&](size_t begin, size_t end) { return RunEnd(chars, begin, end, IsLlmHanOrHangul); });
  split(single(IsNumber));  // Digits(individual_digits)
  return pieces;
}

Chars DecodeChars(absl::string_view text) {
  Chars chars;
  chars.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Char next = DecodeUtf8Char(text.substr(offset));
    chars.push_back(
        {next.code_point, static_cast<uint32_t>(offset), UnicodeClassesOf(next.code_point)});
    offset += next.size_bytes;
  }
  return chars;
}

}  // namespace

std::vector<std::string> PreTokenizerPatterns(PreTokenizerKind kind) {
  if (kind == PreTokenizerKind::kDeepSeekV3) {
    return {
        R"(\p{N}{1,3})",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
        "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
        "\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    };
  }
  return {
      "[\r\n]", "\\s?" + CharacterClass(kLlmLetters), "\\s?" + CharacterClass(kLlmPunctuation),
      "\\s+$",  CharacterClass(kLlmHanOrHangul),
  };
}

void PreTokenizer::Split(absl::string_view text, std::vector<absl::string_view>* pieces) const {
  if (text.empty()) return;
  const Chars chars = DecodeChars(text);
  const std::vector<Range> ranges =
      kind_ == PreTokenizerKind::kDeepSeekV3 ? SplitV3(chars) : SplitLlm(chars);
  const auto offset = [&](size_t i) { return i < chars.size() ? chars[i].offset : text.size(); };
  pieces->reserve(pieces->size() + ranges.size());
  for (const Range& range : ranges) {
    pieces->push_back(text.substr(offset(range.begin), offset(range.end) - offset(range.begin)));
  }
}

}  // namespace sluice
