// Chat formats against the models' own templates, as Hugging Face renders and tokenizes them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/tokenizer/golden_files.h"
#include "tokenizer/chat_encoder.h"

namespace sluice {
namespace {

using ::testing::ElementsAreArray;

// V3's file as R1 and V3.1 have it: two placeholders are <think> and </think>.
std::unique_ptr<Tokenizer> LoadV3(bool with_think) {
  const std::string folder = SLUICE_V3_TOKENIZER_DIR;
  nlohmann::json file = nlohmann::json::parse(ReadFileOrThrow(folder + "/tokenizer.json"));
  if (with_think) {
    for (nlohmann::json& token : file.at("added_tokens")) {
      if (token.at("id") != 128798 && token.at("id") != 128799) continue;
      token["content"] = token.at("id") == 128798 ? "<think>" : "</think>";
      token["special"] = false;
      token["normalized"] = true;
    }
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Parse(file.dump(), ReadFileOrThrow(folder + "/tokenizer_config.json"));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::unique_ptr<Tokenizer> LoadModel(const std::string& folder) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(folder);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

TEST(ChatGolden, RendersAndEncodesEveryCase) {
  const std::unique_ptr<Tokenizer> plain = LoadV3(/*with_think=*/false);
  const std::unique_ptr<Tokenizer> with_think = LoadV3(/*with_think=*/true);
  ASSERT_TRUE(plain != nullptr && with_think != nullptr);
  const std::map<std::string, ChatFormat> formats = {{"v2", ChatFormat::kV2},
                                                     {"v3", ChatFormat::kV3},
                                                     {"r1", ChatFormat::kR1},
                                                     {"v3.1", ChatFormat::kV31}};
  int num_cases = 0;
  int num_injections = 0;
  for (const nlohmann::json& golden : ReadJsonLines(GoldenPath("text/chat_prompts.jsonl"))) {
    SCOPED_TRACE(golden.dump());
    const std::string family = golden.at("family");
    const Tokenizer& tokenizer = family == "r1" || family == "v3.1" ? *with_think : *plain;
    const auto encoder = ChatEncoder::CreateFor(tokenizer, formats.at(family));
    ASSERT_TRUE(encoder.ok()) << encoder.status();
    const std::vector<ChatMessage> messages = ChatMessagesFromJson(golden.at("messages"));
    ChatOptions options;
    options.add_generation_prompt = golden.at("kwargs").at("add_generation_prompt");
    if (golden.at("kwargs").contains("thinking")) {
      options.thinking = golden.at("kwargs").at("thinking").get<bool>();
    }

    const absl::StatusOr<std::string> prompt = (*encoder)->Render(messages, options);
    ASSERT_TRUE(prompt.ok()) << prompt.status();
    EXPECT_EQ(*prompt, golden.at("prompt").get<std::string>());
    const absl::StatusOr<std::vector<TokenId>> ids = (*encoder)->Encode(messages, options);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(tokenizer.Decode(*ids, false), *prompt);
    ++num_cases;
    if (!golden.contains("ids")) continue;

    const std::vector<TokenId> golden_ids = golden.at("ids");
    EXPECT_THAT(tokenizer.Encode(*prompt, AddedTokens::kMatch), ElementsAreArray(golden_ids));
    if (golden.at("case") == "specials_in_content") {
      // Hugging Face turns the user's "<｜User｜>" into the control token; we do not.
      EXPECT_NE(*ids, golden_ids);
      EXPECT_EQ(std::count(ids->begin(), ids->end(), *tokenizer.AddedTokenId("<｜User｜>")), 1);
      ++num_injections;
    } else {
      EXPECT_THAT(*ids, ElementsAreArray(golden_ids));
    }
  }
  EXPECT_EQ(num_cases, 93);
  EXPECT_GE(num_injections, 4);
}

TEST(ChatGolden, TinyV3Chat) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadModel(GoldenPath("tiny-v3-chat"));
  ASSERT_NE(tokenizer, nullptr);
  const auto encoder = ChatEncoder::Create(*tokenizer);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  EXPECT_EQ((*encoder)->format(), ChatFormat::kV3);
  const nlohmann::json cases =
      nlohmann::json::parse(ReadFileOrThrow(GoldenPath("tiny-v3-chat/chat_golden.json")));
  ASSERT_EQ(cases.size(), 3u);
  for (const nlohmann::json& golden : cases) {
    const std::vector<ChatMessage> messages = ChatMessagesFromJson(golden.at("messages"));
    EXPECT_EQ((*encoder)->Render(messages, {}).value(), golden.at("prompt").get<std::string>());
    EXPECT_THAT((*encoder)->Encode(messages, {}).value(),
                ElementsAreArray(golden.at("ids").get<std::vector<TokenId>>()));
    EXPECT_EQ(tokenizer->Decode(golden.at("greedy_ids").get<std::vector<TokenId>>(), false),
              golden.at("greedy_text").get<std::string>());
  }
}

// The prompts that deepseek-tiny's reference run was made with.
TEST(ChatGolden, DeepSeekTinyPrompts) {
  const std::unique_ptr<Tokenizer> tokenizer =
      LoadModel(std::string(SLUICE_SOURCE_DIR) + "/models/deepseek-tiny");
  ASSERT_NE(tokenizer, nullptr);
  const nlohmann::json golden =
      nlohmann::json::parse(ReadFileOrThrow(GoldenPath("deepseek-tiny.json")));
  int num_texts = 0;
  for (const nlohmann::json& prompt : golden.at("prompts")) {
    if (!prompt.contains("text")) continue;
    const std::string text = prompt.at("text");
    EXPECT_THAT(tokenizer->EncodePrompt(text),
                ElementsAreArray(prompt.at("ids").get<std::vector<TokenId>>()));
    EXPECT_EQ(tokenizer->Decode(prompt.at("greedy").get<std::vector<TokenId>>(), false),
              prompt.at("greedy_text").get<std::string>());
    ++num_texts;
  }
  EXPECT_GE(num_texts, 5);
}

}  // namespace
}  // namespace sluice
