// What the golden prompts do not cover: choosing a format, refusals, deepseek-tiny's tool rounds,
// and that nobody's text becomes a control token.
#include "tokenizer/chat_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/tokenizer/golden_files.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;

class ChatEncoderTest : public ::testing::Test {
 protected:
  // deepseek-tiny's tokenizer with another chat template.
  std::unique_ptr<Tokenizer> WithTemplate(const std::string& chat_template) {
    const nlohmann::json config = {{"chat_template", chat_template}};
    return Tokenizer::Parse(ReadFileOrThrow(dir_ + "/tokenizer.json"), config.dump()).value();
  }
  absl::StatusOr<ChatFormat> FormatOf(const std::string& chat_template) {
    const auto tokenizer = WithTemplate(chat_template);
    auto encoder = ChatEncoder::Create(*tokenizer);
    if (!encoder.ok()) return encoder.status();
    return (*encoder)->format();
  }

  const std::string dir_ = std::string(SLUICE_SOURCE_DIR) + "/models/deepseek-tiny";
  const std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::Load(dir_).value();
  const ChatMessage user_{"user", "Hi", "", {}};
};

TEST_F(ChatEncoderTest, ChoosesTheFormatByTheTemplate) {
  EXPECT_EQ(ChatEncoder::Create(*tokenizer_).value()->format(), ChatFormat::kTiny);
  EXPECT_EQ(FormatOf("{{'<｜User｜>'}}{{'<｜Assistant｜>'}}").value(), ChatFormat::kV3);
  EXPECT_EQ(FormatOf("{% content.split('</think>')[-1] %}{{'<｜Assistant｜><think>\\n'}}").value(),
            ChatFormat::kR1);
  EXPECT_EQ(FormatOf("{% if not thinking %}{{'<｜Assistant｜></think>'}}{% endif %}").value(),
            ChatFormat::kV31);
  EXPECT_EQ(FormatOf("{{'User: '}}{{'Assistant:'}}").value(), ChatFormat::kV2);
  EXPECT_EQ(FormatOf("<|im_start|>").status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(FormatOf("").status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(ChatEncoderTest, NamesAMissingControlToken) {
  nlohmann::json file = nlohmann::json::parse(ReadFileOrThrow(dir_ + "/tokenizer.json"));
  for (nlohmann::json& token : file.at("added_tokens")) {
    if (token.at("content") == "<think>") token["content"] = "<other>";
  }
  const auto tokenizer = Tokenizer::Parse(file.dump(), "").value();
  EXPECT_TRUE(ChatEncoder::CreateFor(*tokenizer, ChatFormat::kV3).ok());
  const auto encoder = ChatEncoder::CreateFor(*tokenizer, ChatFormat::kR1);
  EXPECT_EQ(encoder.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(encoder.status().message()), HasSubstr("'<think>'"));
}

TEST_F(ChatEncoderTest, RefusesBadConversations) {
  const auto encoder = ChatEncoder::Create(*tokenizer_).value();
  const auto refusal = [&](std::vector<ChatMessage> messages) {
    const auto ids = encoder->Encode(messages, {});
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(ids.status().message());
  };
  EXPECT_THAT(refusal({}), HasSubstr("not empty"));
  EXPECT_THAT(refusal({user_, {"bot", "x", "", {}}}), HasSubstr("messages[1].role: 'bot'"));
  EXPECT_THAT(refusal({{"user", "x", "", {{"1", "function", "f", "{}"}}}}),
              HasSubstr("messages[0].tool_calls"));
  const auto v2 = ChatEncoder::CreateFor(*tokenizer_, ChatFormat::kV2).value();
  EXPECT_FALSE(v2->Encode({user_, {"tool", "x", "", {}}}, {}).ok());
}

TEST_F(ChatEncoderTest, TinyToolRounds) {
  const auto encoder = ChatEncoder::Create(*tokenizer_).value();
  const ChatToolCall call{"1", "function", "add", "{\"a\": 1}"};
  const std::string rendered_call =
      "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>";
  const std::vector<ChatMessage> messages = {
      {"developer", "Rule A.", "", {}},
      user_,
      {"assistant", "", "", {call, call}},
      {"tool", "3", "", {}},
      {"tool", "4", "", {}},
      {"assistant", "<think>\nhm</think>Seven", "", {}},
      {"system", "Rule B.", "", {}},
  };
  EXPECT_EQ(
      encoder->Render(messages, {}).value(),
      "<｜begin▁of▁sentence｜>Rule A.\n\nRule B.<｜User｜>Hi<｜Assistant｜><｜tool▁calls▁begin｜>" +
          rendered_call + "\n" + rendered_call +
          "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>"
          "3"
          "<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>4<｜tool▁output▁end｜>"
          "<｜tool▁outputs▁end｜>Seven<｜end▁of▁sentence｜><｜Assistant｜>");
  const std::vector<ChatMessage> open(messages.begin(), messages.begin() + 4);
  EXPECT_THAT(encoder->Render(open, {}).value(), testing::EndsWith("<｜tool▁outputs▁end｜>"));
}

TEST_F(ChatEncoderTest, AnswerStart) {
  using Start = ChatEncoder::Start;
  const ChatMessage tool{"tool", "3", "", {}};
  ChatOptions thinking;
  thinking.thinking = true;
  const auto start = [&](ChatFormat format, const ChatMessage& last, const ChatOptions& options) {
    return ChatEncoder::CreateFor(*tokenizer_, format).value()->AnswerStart({last}, options);
  };
  EXPECT_EQ(start(ChatFormat::kV2, user_, {}), Start::kInContent);
  EXPECT_EQ(start(ChatFormat::kV3, user_, thinking), Start::kInContent);
  EXPECT_EQ(start(ChatFormat::kTiny, user_, {}), Start::kModelDecides);
  EXPECT_EQ(start(ChatFormat::kR1, user_, {}), Start::kInReasoning);
  EXPECT_EQ(start(ChatFormat::kR1, tool, {}), Start::kModelDecides);
  EXPECT_EQ(start(ChatFormat::kV31, user_, {}), Start::kInContent);
  EXPECT_EQ(start(ChatFormat::kV31, user_, thinking), Start::kInReasoning);
  EXPECT_EQ(start(ChatFormat::kV31, tool, thinking), Start::kInContent);
}

// An answer that is continued stands as it will when it is finished, but open.
TEST_F(ChatEncoderTest, AContinuedAnswerIsTheFinishedOneWithoutItsEnd) {
  const ChatMessage tool{"tool", "3", "", {}};
  const ChatMessage calls{"assistant", "", "", {{"1", "function", "f", "{}"}}};
  const std::vector<std::vector<ChatMessage>> conversations = {
      {user_},
      {{"system", "S", "", {}}, user_, {"assistant", "A", "", {}}, user_},
      {user_, calls, tool},
  };
  int num_compared = 0;
  for (const ChatFormat format :
       {ChatFormat::kV2, ChatFormat::kV3, ChatFormat::kR1, ChatFormat::kV31, ChatFormat::kTiny}) {
    const auto encoder = ChatEncoder::CreateFor(*tokenizer_, format).value();
    for (std::vector<ChatMessage> messages : conversations) {
      const bool has_tools = messages.back().role == "tool";
      if (format == ChatFormat::kV2 && has_tools) continue;  // it has none
      // R1 thinks before the answer and forgets it afterwards: the two differ.
      if (format == ChatFormat::kR1 && !has_tools) continue;
      for (const char* answer : {"Once upon", " Once", "1", "\n"}) {
        std::vector<ChatMessage> with_answer = messages;
        with_answer.push_back({"assistant", answer, "", {}});
        ChatOptions finished;
        finished.add_generation_prompt = false;
        ChatOptions open;
        open.continue_final_message = true;
        std::vector<TokenId> ids = encoder->Encode(with_answer, open).value();
        ids.push_back(*tokenizer_->AddedTokenId("<｜end▁of▁sentence｜>"));
        const std::vector<TokenId> expected = encoder->Encode(with_answer, finished).value();
        EXPECT_EQ(ids, expected) << ChatFormatName(format) << " "
                                 << encoder->Render(with_answer, finished).value() << "\n"
                                 << encoder->Render(with_answer, open).value();
        EXPECT_EQ(encoder->AnswerStart(with_answer, open), ChatEncoder::Start::kInContent);
        ++num_compared;
      }
      // Nothing written yet: as if there were no such message.
      std::vector<ChatMessage> empty = messages;
      empty.push_back({"assistant", "", "", {}});
      ChatOptions open;
      open.continue_final_message = true;
      EXPECT_EQ(encoder->Encode(empty, open).value(), encoder->Encode(messages, {}).value());
    }
    ChatOptions open;
    open.continue_final_message = true;
    EXPECT_FALSE(encoder->Encode({user_}, open).ok());
    EXPECT_FALSE(encoder->Encode({user_, calls}, open).ok());
  }
  EXPECT_EQ(num_compared, 4 * (2 + 3 + 1 + 3 + 3));
}

// System messages move to the front, so that the last message is not always the one that the prompt
// ends with.
TEST_F(ChatEncoderTest, TheAnswerStartsInReasoningExactlyWhenThePromptOpensIt) {
  const std::vector<ChatMessage> kinds = {{"system", "S", "", {}},
                                          {"developer", "D", "", {}},
                                          user_,
                                          {"assistant", "A", "", {}},
                                          {"assistant", "", "", {{"1", "function", "f", "{}"}}},
                                          {"tool", "T", "", {}}};
  constexpr int kMaxMessages = 4;
  int num_rendered = 0;
  for (const ChatFormat format :
       {ChatFormat::kV2, ChatFormat::kV3, ChatFormat::kR1, ChatFormat::kV31, ChatFormat::kTiny}) {
    const auto encoder = ChatEncoder::CreateFor(*tokenizer_, format).value();
    for (const bool thinking : {false, true}) {
      for (const bool prompt : {false, true}) {
        ChatOptions options;
        options.thinking = thinking;
        options.add_generation_prompt = prompt;
        // Every sequence of up to kMaxMessages kinds, counted like a number in their base.
        std::vector<size_t> digits = {0};
        while (digits.size() <= kMaxMessages) {
          std::vector<ChatMessage> messages;
          std::string roles;
          for (const size_t digit : digits) {
            messages.push_back(kinds[digit]);
            roles += kinds[digit].role + (kinds[digit].tool_calls.empty() ? " " : "+calls ");
          }
          if (const auto text = encoder->Render(messages, options); text.ok()) {
            ++num_rendered;
            const bool opens = testing::Value(
                *text,
                testing::AnyOf(testing::EndsWith("<think>"), testing::EndsWith("<think>\n")));
            EXPECT_EQ(encoder->AnswerStart(messages, options) == ChatEncoder::Start::kInReasoning,
                      opens)
                << ChatFormatName(format) << ", thinking " << thinking << ", prompt " << prompt
                << ": " << roles;
          }
          size_t i = 0;
          while (i < digits.size() && ++digits[i] == kinds.size()) digits[i++] = 0;
          if (i == digits.size()) digits.push_back(0);
        }
      }
    }
  }
  EXPECT_GT(num_rendered, 5 * 1000);
}

}  // namespace
}  // namespace sluice
