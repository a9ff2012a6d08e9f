// Tokens to text: stop strings over token borders, split characters, reasoning.
#include "services/router/api/output_processor.h"

#include <gmock/gmock.h>

#include "tests/router_api/api_fixture.h"

namespace sluice::router {
namespace {

class OutputProcessorTest : public ApiFixture {
 protected:
  OutputProcessor Make(OutputOptions options, int min_tokens = 0) {
    return OutputProcessor(tokenizer(), options, {eos()}, min_tokens);
  }
  // Feeds one token at a time; *stopped_after gets how many it took to stop, or -1.
  ChoiceDelta Feed(OutputProcessor* output, const std::vector<TokenId>& ids,
                   int* stopped_after = nullptr) {
    ChoiceDelta all;
    int fed = 0;
    if (stopped_after != nullptr) *stopped_after = -1;
    for (TokenId id : ids) {
      const SampledToken token{id, -1.0f, {}};
      ++fed;
      if (output->Add({&token, 1}, &all)) {
        if (stopped_after != nullptr) *stopped_after = fed;
        break;
      }
    }
    return all;
  }
};

TEST_F(OutputProcessorTest, TextIsTheTokensText) {
  OutputProcessor output = Make({});
  const std::string text = "Count the moons: 世界 🙂, naïve.";
  const std::vector<TokenId> ids = Ids(text);
  ChoiceDelta delta = Feed(&output, ids);
  output.Finish(&delta);
  EXPECT_EQ(delta.text, text);
  EXPECT_EQ(output.completion_tokens(), static_cast<int>(ids.size()));
  EXPECT_TRUE(delta.tokens.empty()) << "tokens were not asked for";
}

TEST_F(OutputProcessorTest, EachDeltaIsWholeCharacters) {
  OutputProcessor output = Make({});
  std::string all;
  bool held_back = false;
  for (TokenId id : Ids("🙂🦊世界")) {
    ChoiceDelta delta;
    const SampledToken token{id, 0, {}};
    output.Add({&token, 1}, &delta);
    held_back |= delta.text.empty();
    // Decoding what is not valid UTF-8 would put U+FFFD there.
    EXPECT_EQ(delta.text.find("\xEF\xBF\xBD"), std::string::npos);
    for (size_t i = 0; i < delta.text.size();) {
      const unsigned char lead = delta.text[i];
      i += lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
      ASSERT_LE(i, delta.text.size()) << "a character is cut";
    }
    all += delta.text;
  }
  EXPECT_TRUE(held_back) << "the test's characters take one token each; use rarer ones";
  EXPECT_EQ(all, "🙂🦊世界");
}

TEST_F(OutputProcessorTest, AnUnfinishedCharacterEndsAsReplacement) {
  OutputProcessor output = Make({});
  std::vector<TokenId> ids = Ids("🦊");
  ASSERT_GT(ids.size(), 1u);
  ids.pop_back();
  ChoiceDelta delta = Feed(&output, ids);
  EXPECT_EQ(delta.text, "");
  output.Finish(&delta);
  EXPECT_EQ(delta.text, "\xEF\xBF\xBD");
}

TEST_F(OutputProcessorTest, StopStringAcrossTokens) {
  OutputOptions options;
  options.stop = {"the end"};
  OutputProcessor output = Make(options);
  std::vector<TokenId> ids = Ids("A story of th");
  for (TokenId id : Ids("e e")) ids.push_back(id);
  for (TokenId id : Ids("nd and more")) ids.push_back(id);
  int stopped_after = 0;
  const ChoiceDelta delta = Feed(&output, ids, &stopped_after);
  EXPECT_EQ(delta.text, "A story of ");
  EXPECT_EQ(delta.matched_stop, "the end");
  EXPECT_GT(stopped_after, 0);
  EXPECT_EQ(output.completion_tokens(), stopped_after);
}

TEST_F(OutputProcessorTest, StopStringCanBeKept) {
  OutputOptions options;
  options.stop = {"the end"};
  options.include_stop_str_in_output = true;
  OutputProcessor output = Make(options);
  EXPECT_EQ(Feed(&output, Ids("A story, the end. More")).text, "A story, the end");
}

TEST_F(OutputProcessorTest, WhatLookedLikeAStopIsReleasedAtTheEnd) {
  OutputOptions options;
  options.stop = {"the end"};
  OutputProcessor output = Make(options);
  ChoiceDelta delta = Feed(&output, Ids("It was the en"));
  EXPECT_EQ(delta.text, "It was ");
  output.Finish(&delta);
  EXPECT_EQ(delta.text, "It was the en");
  EXPECT_EQ(delta.matched_stop, "");
}

TEST_F(OutputProcessorTest, StopStringsCountFromMinTokensOn) {
  OutputOptions options;
  options.stop = {"b"};
  std::vector<TokenId> ids;
  for (int i = 0; i < 3; ++i) {
    for (TokenId id : Ids("b")) ids.push_back(id);
  }
  ASSERT_EQ(ids.size(), 3u);
  OutputProcessor output = Make(options, /*min_tokens=*/2);
  int stopped_after = 0;
  EXPECT_EQ(Feed(&output, ids, &stopped_after).text, "bb");
  EXPECT_EQ(stopped_after, 3);
}

TEST_F(OutputProcessorTest, StopTokenCountsButIsNotText) {
  OutputOptions options;
  options.skip_special_tokens = false;
  options.return_token_ids = true;
  OutputProcessor output = Make(options);
  std::vector<TokenId> ids = Ids("done");
  ids.push_back(eos());
  ChoiceDelta delta = Feed(&output, ids);
  output.Finish(&delta);
  EXPECT_EQ(delta.text, "done");
  EXPECT_EQ(output.completion_tokens(), static_cast<int>(ids.size()));
  ASSERT_EQ(delta.tokens.size(), ids.size());
  EXPECT_EQ(delta.tokens.back().token, eos());
}

TEST_F(OutputProcessorTest, ReasoningIsSplitAndCounted) {
  OutputOptions options;
  options.reasoning_start = ChatEncoder::Start::kInReasoning;
  OutputProcessor output = Make(options);
  std::vector<TokenId> ids = tokenizer().Encode("one two</think>three", AddedTokens::kMatch);
  ChoiceDelta delta = Feed(&output, ids);
  output.Finish(&delta);
  EXPECT_EQ(delta.reasoning, "one two");
  EXPECT_EQ(delta.text, "three");
  EXPECT_GT(output.reasoning_tokens(), 0);
  EXPECT_LT(output.reasoning_tokens(), output.completion_tokens());
}

TEST_F(OutputProcessorTest, WithoutChatThinkTagsAreText) {
  OutputProcessor output = Make({});
  std::vector<TokenId> ids = tokenizer().Encode("<think>a</think>b", AddedTokens::kMatch);
  ChoiceDelta delta = Feed(&output, ids);
  output.Finish(&delta);
  EXPECT_EQ(delta.text, "<think>a</think>b");
  EXPECT_EQ(delta.reasoning, "");
}

}  // namespace
}  // namespace sluice::router
