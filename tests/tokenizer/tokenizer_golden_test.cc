// The tokenizer against ids that Hugging Face's tokenizers gave: the small test tokenizer of
// tiny-v3-chat and the real one of DeepSeek-V3.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/utf8.h"
#include "tests/tokenizer/golden_files.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode_classes.h"

namespace sluice {
namespace {

using ::testing::ElementsAreArray;

// Folder and golden file.
struct Source {
  std::string name;
  std::string model_dir;
  std::string cases;
};

class TokenizerGolden : public ::testing::TestWithParam<Source> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(GetParam().model_dir);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGolden, EncodesEveryCase) {
  const std::vector<nlohmann::json> cases = ReadJsonLines(GoldenPath(GetParam().cases));
  ASSERT_GE(cases.size(), 290u);
  for (const nlohmann::json& golden : cases) {
    const std::string text = golden.at("text");
    EXPECT_THAT(tokenizer_->Encode(text, AddedTokens::kMatch),
                ElementsAreArray(golden.at("ids").get<std::vector<TokenId>>()))
        << golden.at("tag") << ": " << golden.at("text");
  }
}

TEST_P(TokenizerGolden, DecodingGivesTheTextBack) {
  for (const nlohmann::json& golden : ReadJsonLines(GoldenPath(GetParam().cases))) {
    const std::string text = golden.at("text");
    EXPECT_EQ(tokenizer_->Decode(golden.at("ids").get<std::vector<TokenId>>(), false), text);
    for (const AddedTokens added : {AddedTokens::kMatch, AddedTokens::kIgnore}) {
      EXPECT_EQ(tokenizer_->Decode(tokenizer_->Encode(text, added), false), text);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Files, TokenizerGolden,
                         ::testing::Values(Source{"TinyV3Chat", GoldenPath("tiny-v3-chat"),
                                                  "tiny-v3-chat/tokenizer_cases.jsonl"},
                                           Source{"DeepSeekV3", SLUICE_V3_TOKENIZER_DIR,
                                                  "text/tokenizer_v3.jsonl"}),
                         [](const auto& info) { return info.param.name; });

class DeepSeekV3 : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(SLUICE_V3_TOKENIZER_DIR);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(DeepSeekV3, DecodesEveryCase) {
  const std::vector<nlohmann::json> cases = ReadJsonLines(GoldenPath("text/detokenizer_v3.jsonl"));
  ASSERT_EQ(cases.size(), 100u);
  for (const nlohmann::json& golden : cases) {
    const std::vector<TokenId> ids = golden.at("ids");
    for (const bool skip_special : {false, true}) {
      const std::string expected = golden.at(skip_special ? "text_skip_special" : "text");
      EXPECT_EQ(tokenizer_->Decode(ids, skip_special), expected) << golden.dump();
      IncrementalDetokenizer detokenizer(*tokenizer_, skip_special);
      std::string streamed;
      for (const TokenId id : ids) {
        const std::string delta = detokenizer.Add(id);
        EXPECT_TRUE(IsValidUtf8(delta));
        streamed += delta;
      }
      EXPECT_EQ(streamed + detokenizer.Finish(), expected) << golden.dump();
    }
  }
}

TEST_F(DeepSeekV3, KnowsItsTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 128815);
  EXPECT_EQ(tokenizer_->bos_token_id(), 0);
  EXPECT_EQ(tokenizer_->eos_token_id(), 1);
  EXPECT_EQ(tokenizer_->AddedTokenId("<｜User｜>"), 128803);
  EXPECT_EQ(tokenizer_->AddedTokenId("<think>"), std::nullopt);
  EXPECT_TRUE(tokenizer_->IsSpecial(128805));
  EXPECT_FALSE(tokenizer_->IsSpecial(128803));
  EXPECT_TRUE(tokenizer_->IsAdded(128803));
  EXPECT_FALSE(tokenizer_->IsAdded(19923));
  EXPECT_TRUE(tokenizer_->IsDefined(127999));
  EXPECT_FALSE(tokenizer_->IsDefined(128815));
  EXPECT_FALSE(tokenizer_->IsDefined(-1));
  EXPECT_EQ(tokenizer_->TokenBytes(19923), "Hello");
  EXPECT_EQ(tokenizer_->TokenBytes(128815), "");
}

TEST_F(DeepSeekV3, PutsOneBosBeforeAPrompt) {
  EXPECT_THAT(tokenizer_->EncodePrompt("Hello world"), ElementsAreArray({0, 19923, 2058}));
  EXPECT_THAT(tokenizer_->EncodePrompt("<｜begin▁of▁sentence｜>Hello world"),
              ElementsAreArray({0, 19923, 2058}));
  EXPECT_THAT(tokenizer_->EncodePrompt(""), ElementsAreArray({0}));
}

TEST(UnicodeClasses, AgreeWithTheGoldenRangesForEveryCodePoint) {
  const nlohmann::json golden =
      nlohmann::json::parse(ReadFileOrThrow(GoldenPath("text/unicode_classes.json")));
  std::vector<uint8_t> expected(0x110000, 0);
  const std::vector<std::pair<std::string, uint8_t>> names = {
      {"L", kLetter},      {"M", kMark},   {"N", kNumber},
      {"P", kPunctuation}, {"S", kSymbol}, {"space", kWhiteSpace}};
  for (const auto& [name, bit] : names) {
    for (const nlohmann::json& range : golden.at(name)) {
      for (int cp = range.at(0); cp <= range.at(1); ++cp) expected[cp] |= bit;
    }
  }
  for (int cp = 0; cp < 0x110000; ++cp) {
    ASSERT_EQ(UnicodeClassesOf(cp), expected[cp]) << "U+" << std::hex << cp;
  }
  EXPECT_EQ(UnicodeClassesOf(0x110000), 0);
}

// The vocabulary of V2 is not here, but no token crosses a piece: every piece has a token of its
// own.
TEST(PreTokenizer, V2PiecesAreNotMoreThanTheGoldenTokens) {
  const PreTokenizer pre_tokenizer(PreTokenizerKind::kDeepSeekLlm);
  for (const nlohmann::json& golden : ReadJsonLines(GoldenPath("text/tokenizer_v2.jsonl"))) {
    if (golden.at("tag") == "special_inline") continue;
    const std::string text = golden.at("text");
    std::vector<absl::string_view> pieces;
    pre_tokenizer.Split(text, &pieces);
    EXPECT_LE(pieces.size(), golden.at("ids").size()) << golden.dump();
  }
}

}  // namespace
}  // namespace sluice
