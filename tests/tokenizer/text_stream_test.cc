// The three that stand between tokens and the client's text: detokenizer, stop matcher, reasoning
// parser.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/tokenizer/golden_files.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/reasoning_parser.h"
#include "tokenizer/stop_matcher.h"

namespace sluice {
namespace {

TEST(Detokenizer, HoldsBackPartsOfACharacter) {
  const auto tokenizer =
      Tokenizer::Load(std::string(SLUICE_SOURCE_DIR) + "/models/deepseek-tiny").value();
  // U+1F600 as four byte tokens: ids in the order of GPT-2's alphabet, found by their bytes.
  std::vector<TokenId> byte_token(256, -1);
  for (TokenId id = 0; id < tokenizer->vocab_size(); ++id) {
    const absl::string_view bytes = tokenizer->TokenBytes(id);
    if (bytes.size() == 1 && !tokenizer->IsAdded(id)) byte_token[uint8_t(bytes[0])] = id;
  }
  IncrementalDetokenizer detokenizer(*tokenizer, /*skip_special_tokens=*/true);
  EXPECT_EQ(detokenizer.Add(byte_token['x']), "x");
  EXPECT_EQ(detokenizer.Add(byte_token[0xF0]), "");
  EXPECT_EQ(detokenizer.Add(byte_token[0x9F]), "");
  EXPECT_EQ(detokenizer.Add(*tokenizer->eos_token_id()), "");  // special: skipped, nothing broken
  EXPECT_EQ(detokenizer.Add(byte_token[0x98]), "");
  EXPECT_EQ(detokenizer.Add(byte_token[0x80]), "😀");
  EXPECT_EQ(detokenizer.Add(byte_token[0xE4]), "");
  EXPECT_EQ(detokenizer.Add(byte_token['y']), "\uFFFDy");
  EXPECT_EQ(detokenizer.Add(byte_token[0xE4]), "");
  EXPECT_EQ(detokenizer.Finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.Finish(), "");
}

TEST(StopMatcher, HoldsBackOnlyAPossibleBeginning) {
  StopMatcher matcher({"END", "\n\n"});
  EXPECT_EQ(matcher.Add("text E").text, "text ");
  EXPECT_EQ(matcher.Add("N").text, "");
  EXPECT_EQ(matcher.Add("T").text, "ENT");
  EXPECT_EQ(matcher.Add("!\n").text, "!");
  const StopMatcher::Result result = matcher.Add("\nmore");
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.stop, "\n\n");
  EXPECT_EQ(result.text, "");
  EXPECT_TRUE(matcher.Add("again").stopped);
  EXPECT_EQ(matcher.Add("again").text, "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcher, TheFirstCompletedWinsAndThenTheFirstListed) {
  StopMatcher first_completed({"abcd", "bc"});
  const StopMatcher::Result result = first_completed.Add("xabcd");
  EXPECT_EQ(result.stop, "bc");
  EXPECT_EQ(result.text, "xa");
  StopMatcher first_listed({"b", "ab"}, /*include_stop=*/true);
  EXPECT_EQ(first_listed.Add("ab").stop, "b");
  StopMatcher included({"END"}, /*include_stop=*/true);
  EXPECT_EQ(included.Add("the END.").text, "the END");
}

TEST(StopMatcher, WithoutAStopEverythingComesOut) {
  StopMatcher matcher({"aab", ""});
  EXPECT_EQ(matcher.Add("aaaa").text, "aa");
  EXPECT_EQ(matcher.Finish(), "aa");
  StopMatcher none({});
  EXPECT_EQ(none.Add("text").text, "text");
}

struct Split {
  std::string reasoning;
  std::string content;
  friend bool operator==(const Split&, const Split&) = default;
};

Split Parse(ChatEncoder::Start start, const std::string& text) {
  ReasoningParser parser(start);
  Split split;
  for (const char c : text) {
    const ReasoningParser::Delta delta = parser.Add(std::string(1, c));
    split.reasoning += delta.reasoning;
    split.content += delta.content;
  }
  const ReasoningParser::Delta delta = parser.Finish();
  return {split.reasoning + delta.reasoning, split.content + delta.content};
}

TEST(ReasoningParser, InReasoning) {
  const auto start = ChatEncoder::Start::kInReasoning;
  EXPECT_EQ(Parse(start, "let me see\n</think>\n\n42"), (Split{"let me see", "42"}));
  EXPECT_EQ(Parse(start, "\na\n\n</think>\n\n\nb"), (Split{"a\n", "\nb"}));
  EXPECT_EQ(Parse(start, "</think>x"), (Split{"", "x"}));
  EXPECT_EQ(Parse(start, "\n</think>\nx"), (Split{"", "x"}));
  EXPECT_EQ(Parse(start, "never ends </thin"), (Split{"never ends </thin", ""}));
  EXPECT_EQ(Parse(start, "a</think>b</think>c"), (Split{"a", "b</think>c"}));
  EXPECT_EQ(Parse(start, "if (a <</think>b"), (Split{"if (a <", "b"}));
}

TEST(ReasoningParser, ModelDecides) {
  const auto start = ChatEncoder::Start::kModelDecides;
  EXPECT_EQ(Parse(start, "<think>\nhm\n</think>\n\nyes"), (Split{"hm", "yes"}));
  EXPECT_EQ(Parse(start, "<thinking about it"), (Split{"", "<thinking about it"}));
  EXPECT_EQ(Parse(start, "yes <think>no"), (Split{"", "yes <think>no"}));
  EXPECT_EQ(Parse(start, "<th"), (Split{"", "<th"}));
  EXPECT_EQ(Parse(start, "\n\nyes"), (Split{"", "\n\nyes"}));
}

TEST(ReasoningParser, InContentLooksForNothing) {
  EXPECT_EQ(Parse(ChatEncoder::Start::kInContent, "<think>a</think>"),
            (Split{"", "<think>a</think>"}));
}

}  // namespace
}  // namespace sluice
