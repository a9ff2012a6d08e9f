#include "common/utf8.h"

#include <string>

#include "gtest/gtest.h"

namespace sluice {
namespace {

std::string Lossy(absl::string_view bytes) {
  std::string text;
  AppendUtf8Lossy(bytes, &text);
  return text;
}

TEST(Utf8, EachMaximalSubpartIsOneReplacement) {
  EXPECT_EQ(Lossy("a\xC3\xA9"), "aé");
  EXPECT_EQ(Lossy("\xFF"), "\uFFFD");
  EXPECT_EQ(Lossy("\xC0\xAF"), "\uFFFD\uFFFD");            // never valid, two subparts
  EXPECT_EQ(Lossy("\xE0\x80\xAF"), "\uFFFD\uFFFD\uFFFD");  // overlong
  EXPECT_EQ(Lossy("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(Lossy("\xF0\x9F\x98"), "\uFFFD");              // cut short: one subpart
  EXPECT_EQ(Lossy("\xF0\x9F\x98x"), "\uFFFDx");
  EXPECT_EQ(Lossy("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(Lossy("\xE4\xBD\xE4\xBD\xA0"), "\uFFFD你");
}

TEST(Utf8, CompletePrefixHoldsBackOnlyWhatCouldBecomeACharacter) {
  EXPECT_EQ(CompleteUtf8Prefix(""), 0u);
  EXPECT_EQ(CompleteUtf8Prefix("abc"), 3u);
  EXPECT_EQ(CompleteUtf8Prefix("a\xF0\x9F\x98"), 1u);
  EXPECT_EQ(CompleteUtf8Prefix("a\xF0\x9F\x98\x80"), 5u);
  EXPECT_EQ(CompleteUtf8Prefix("a\xFF"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("a\xE0\x80"), 3u);     // already ill-formed
  EXPECT_EQ(CompleteUtf8Prefix("\xC3\xA9\xA9"), 3u);  // a stray continuation byte
  EXPECT_EQ(CompleteUtf8Prefix("\xE4"), 0u);
}

TEST(Utf8, BoundedIsValidAndEndsWithACharacter) {
  EXPECT_EQ(BoundedUtf8("", 4), "");
  EXPECT_EQ(BoundedUtf8("abcd", 4), "abcd");
  EXPECT_EQ(BoundedUtf8("abcde", 4), "abcd");
  EXPECT_EQ(BoundedUtf8("abcé", 4), "abc");
  EXPECT_EQ(BoundedUtf8("abé", 4), "abé");
  EXPECT_EQ(BoundedUtf8("\U0001F600", 3), "");
  EXPECT_EQ(BoundedUtf8("a\xFF", 4), "a\uFFFD");
  EXPECT_EQ(BoundedUtf8("ab\xFF", 4), "ab");  // its replacement is longer than it was
}

}  // namespace
}  // namespace sluice
