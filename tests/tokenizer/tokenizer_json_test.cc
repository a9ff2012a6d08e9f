// tokenizer.json and tokenizer_config.json from strangers: what is accepted, and what is refused by
// name.
#include "tokenizer/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "common/utf8.h"
#include "tests/tokenizer/golden_files.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A complete file: tokens 0..255 are the bytes, 256 is "ab", 257 is "abc"; 300 is <｜User｜>.
nlohmann::json SmallFile() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    AppendUtf8(ByteAlphabet()[byte], &symbol);
    vocab[symbol] = byte;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  nlohmann::json steps = nlohmann::json::array();
  for (const std::string& pattern : PreTokenizerPatterns(PreTokenizerKind::kDeepSeekV3)) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  return {
      {"version", "1.0"},
      {"normalizer", {{"type", "Sequence"}, {"normalizers", nlohmann::json::array()}}},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", steps}}},
      {"post_processor", {{"type", "ByteLevel"}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"added_tokens",
       {{{"id", 300},
         {"content", "<｜User｜>"},
         {"special", false},
         {"normalized", true},
         {"lstrip", false}}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"byte_fallback", false},
        {"vocab", vocab},
        {"merges", {"a b", "ab c"}}}},
  };
}

TEST(TokenizerJson, ReadsASmallFile) {
  const auto tokenizer = Tokenizer::Parse(SmallFile().dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("abcab", AddedTokens::kMatch), ElementsAre(257, 256));
  EXPECT_THAT((*tokenizer)->Encode("a<｜User｜>b", AddedTokens::kMatch),
              ElementsAre('a', 300, 'b'));
  EXPECT_EQ((*tokenizer)->vocab_size(), 301);
  EXPECT_FALSE((*tokenizer)->IsDefined(299));
  EXPECT_EQ((*tokenizer)->bos_token_id(), std::nullopt);
  EXPECT_THAT((*tokenizer)->EncodePrompt("ab"), ElementsAre(256));
}

TEST(TokenizerJson, MergesMayBePairs) {
  nlohmann::json file = SmallFile();
  file["model"]["merges"] = nlohmann::json::parse(R"([["a", "b"], ["ab", "c"]])");
  const auto tokenizer = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("abc", AddedTokens::kMatch), ElementsAre(257));
}

TEST(TokenizerJson, KnowsTheSequenceOfV2) {
  nlohmann::json file = SmallFile();
  nlohmann::json steps = nlohmann::json::array();
  for (const std::string& pattern : PreTokenizerPatterns(PreTokenizerKind::kDeepSeekLlm)) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  file["pre_tokenizer"]["pretokenizers"] = steps;
  // Bytes that UTF-8 never has may be missing, as in V2's own vocabulary.
  std::string never;
  AppendUtf8(ByteAlphabet()[0xFF], &never);
  file["model"]["vocab"].erase(never);
  const auto definition = ParseTokenizerJson(file.dump());
  ASSERT_TRUE(definition.ok()) << definition.status();
  EXPECT_EQ(definition->pre_tokenizer, PreTokenizerKind::kDeepSeekLlm);
}

// V2 has the thirteen letters that stand for bytes outside UTF-8 as added tokens: "ø" is the
// letter, though a vocabulary entry written so is the byte 0xF8.
TEST(TokenizerJson, AnAddedTokenIsItsText) {
  nlohmann::json file = SmallFile();
  file["model"]["vocab"].erase("ø");
  file["added_tokens"].push_back(
      {{"id", 301}, {"content", "ø"}, {"special", false}, {"normalized", true}});
  file["added_tokens"].push_back(
      {{"id", 302}, {"content", "<thinâk>"}, {"special", false}, {"normalized", true}});
  const auto tokenizer = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<TokenId> ids = (*tokenizer)->Encode("bø<thinâk>é", AddedTokens::kMatch);
  EXPECT_THAT(ids, ElementsAre('b', 301, 302, 0xC3, 0xA9));
  EXPECT_EQ((*tokenizer)->TokenBytes(301), "ø");
  EXPECT_EQ((*tokenizer)->TokenBytes(302), "<thinâk>");
  EXPECT_EQ((*tokenizer)->Decode(ids, false), "bø<thinâk>é");
}

TEST(TokenizerJson, AnAddedTokenMayRepeatTheVocabulary) {
  nlohmann::json file = SmallFile();
  file["added_tokens"][0]["content"] = "abc";
  file["added_tokens"][0]["id"] = 257;
  const auto tokenizer = Tokenizer::Parse(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenBytes(257), "abc");
}

struct Refusal {
  std::function<void(nlohmann::json*)> change;
  std::string message;
};

TEST(TokenizerJson, RefusesByName) {
  using Json = nlohmann::json;
  const std::vector<Refusal> refusals = {
      {[](Json* f) {
         (*f)["normalizer"]["normalizers"] = {{{"type", "NFC"}}};
       },
       "normalizer.normalizers[0]"},
      {[](Json* f) {
         (*f)["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer.type: 'NFC'"},
      {[](Json* f) { f->erase("pre_tokenizer"); }, "pre_tokenizer: missing"},
      {[](Json* f) { (*f)["pre_tokenizer"]["type"] = "Whitespace"; }, "'Whitespace'"},
      {[](Json* f) { (*f)["pre_tokenizer"]["pretokenizers"].erase(0); }, "sequence of 3 steps"},
      {[](Json* f) { (*f)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\d+"; },
       "pretokenizers[0].pattern.Regex: this regular expression is not known: '\\d+'"},
      {[](Json* f) { (*f)["pre_tokenizer"]["pretokenizers"][1]["behavior"] = "Removed"; },
       "pretokenizers[1].behavior: 'Removed'"},
      {[](Json* f) { (*f)["pre_tokenizer"]["pretokenizers"][2]["invert"] = true; },
       "pretokenizers[2].invert"},
      {[](Json* f) { (*f)["pre_tokenizer"]["pretokenizers"][3].erase("use_regex"); },
       "pretokenizers[3].use_regex"},
      {[](Json* f) {
         (*f)["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       "post_processor.type: 'TemplateProcessing'"},
      {[](Json* f) { (*f)["decoder"]["type"] = "Metaspace"; }, "decoder.type"},
      {[](Json* f) { (*f)["model"]["type"] = "Unigram"; }, "model.type: 'Unigram'"},
      {[](Json* f) { (*f)["model"]["byte_fallback"] = true; }, "model.byte_fallback"},
      {[](Json* f) { (*f)["model"]["ignore_merges"] = true; }, "model.ignore_merges"},
      {[](Json* f) { (*f)["model"]["dropout"] = 0.5; }, "model.dropout"},
      {[](Json* f) { (*f)["model"]["unk_token"] = "x"; }, "model.unk_token"},
      {[](Json* f) { (*f)["model"]["vocab"]["zz"] = -1; }, "model.vocab['zz']"},
      {[](Json* f) { (*f)["model"]["vocab"]["zz"] = 2147483647; }, "model.vocab['zz']"},
      {[](Json* f) { (*f)["model"]["vocab"]["zz"] = 1.5; }, "model.vocab['zz']"},
      {[](Json* f) { (*f)["model"]["vocab"]["zz"] = 256; }, "id 256 is used by another token"},
      {[](Json* f) { (*f)["model"]["vocab"].erase("a"); }, "lacks 'a', the token of byte 97"},
      {[](Json* f) { (*f)["model"]["vocab"] = Json::array(); }, "model.vocab: must be an object"},
      {[](Json* f) { (*f)["model"]["merges"][1] = "ab"; }, "model.merges[1]: must be two tokens"},
      {[](Json* f) { (*f)["model"]["merges"][1] = "a b c"; }, "model.merges[1]"},
      {[](Json* f) { (*f)["model"]["merges"][1] = {"a"}; }, "model.merges[1]: a merge has two"},
      {[](Json* f) {
         (*f)["model"]["merges"][1] = Json::array({"a", 7});
       },
       "model.merges[1][1]: must be a str"},
      {[](Json* f) { (*f)["model"]["merges"][1] = "b c"; }, "model.merges[1]: 'bc' is not in"},
      {[](Json* f) { (*f)["model"]["merges"][1] = "zz c"; }, "model.merges[1]: 'zz' is not in"},
      {[](Json* f) { (*f)["model"]["merges"][1] = "a b"; }, "model.merges[1]: the same pair"},
      {[](Json* f) { (*f)["model"].erase("merges"); }, "model.merges: must be an array"},
      {[](Json* f) { (*f)["added_tokens"][0]["id"] = -1; }, "added_tokens[0].id"},
      {[](Json* f) { (*f)["added_tokens"][0]["id"] = 1 << 30; }, "added_tokens[0].id"},
      {[](Json* f) { (*f)["added_tokens"][0]["id"] = 97; },
       "97 is '<｜User｜>', but 'a' in model.vocab"},
      {[](Json* f) { (*f)["added_tokens"][0]["content"] = "ab"; }, "gives this token 256"},
      {[](Json* f) {
         (*f)["added_tokens"][0]["content"] = "ø";
         (*f)["added_tokens"][0]["id"] = 0xF8;
       },
       "added_tokens[0].id: 248 is the text 'ø', but the bytes '\\xf8' in model.vocab"},
      {[](Json* f) { (*f)["added_tokens"][0]["content"] = ""; }, "added_tokens[0].content"},
      {[](Json* f) { (*f)["added_tokens"][0]["content"] = std::string(300, 'x'); },
       "added_tokens[0].content: must have 1 to 256 bytes"},
      {[](Json* f) { (*f)["added_tokens"][0]["rstrip"] = true; }, "added_tokens[0].rstrip"},
      {[](Json* f) { (*f)["added_tokens"][0].erase("special"); }, "added_tokens[0].special"},
      {[](Json* f) { (*f)["added_tokens"].push_back((*f)["added_tokens"][0]); },
       "added_tokens[1].content: appears twice"},
      {[](Json* f) {
         (*f)["added_tokens"].push_back((*f)["added_tokens"][0]);
         (*f)["added_tokens"][1]["content"] = "<other>";
       },
       "added_tokens[1].id: 300 appears twice, for '<｜User｜>' and '<other>'"},
  };
  for (const Refusal& refusal : refusals) {
    nlohmann::json file = SmallFile();
    refusal.change(&file);
    const auto tokenizer = Tokenizer::Parse(file.dump(), "");
    EXPECT_FALSE(tokenizer.ok()) << refusal.message;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(refusal.message));
  }
}

TEST(TokenizerJson, RefusesKeysThatAppearTwice) {
  std::string file = SmallFile().dump();
  const std::string twice = "{\"model\":{}," + file.substr(1);
  EXPECT_THAT(std::string(ParseTokenizerJson(twice).status().message()),
              HasSubstr("model: appears twice"));
  const size_t ab = file.find("\"ab\":256");
  ASSERT_NE(ab, std::string::npos);
  file.insert(ab, "\"ab\":258,");
  EXPECT_THAT(std::string(ParseTokenizerJson(file).status().message()),
              HasSubstr("model.vocab['ab']: appears twice"));
}

TEST(TokenizerJson, SurvivesBrokenAndDeepFiles) {
  const std::string file = SmallFile().dump();
  for (size_t size = 0; size < file.size(); size += 97) {
    EXPECT_FALSE(ParseTokenizerJson(file.substr(0, size)).ok());
  }
  for (const std::string& bad : {std::string(1000000, '['), std::string("\xFF\xFE"),
                                 std::string("null"), std::string("[]"), std::string("{}")}) {
    EXPECT_FALSE(ParseTokenizerJson(bad).ok());
    EXPECT_FALSE(bad != "{}" && ParseTokenizerConfigJson(bad).ok());
  }
}

TEST(TokenizerConfigJson, ReadsBothForms) {
  const auto config = ParseTokenizerConfigJson(
      R"({"add_bos_token": true, "bos_token": "<s>", "eos_token": {"content": "</s>"},
          "chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "T"}]})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->add_bos_token);
  EXPECT_EQ(config->bos_token, "<s>");
  EXPECT_EQ(config->eos_token, "</s>");
  EXPECT_EQ(config->chat_template, "T");
  EXPECT_FALSE(ParseTokenizerConfigJson(R"({"add_bos_token": 1})").ok());
  EXPECT_FALSE(ParseTokenizerConfigJson(R"({"bos_token": 1})").ok());
  EXPECT_FALSE(ParseTokenizerConfigJson(R"({"chat_template": [{"name": "rag"}]})").ok());
}

TEST(TokenizerConfigJson, ItsTokensMustExist) {
  const std::string file = SmallFile().dump();
  EXPECT_THAT(std::string(Tokenizer::Parse(file, R"({"bos_token": "<none>"})").status().message()),
              HasSubstr("bos_token: '<none>' is not a token"));
  EXPECT_THAT(std::string(Tokenizer::Parse(file, R"({"add_bos_token": true})").status().message()),
              HasSubstr("add_bos_token"));
  const auto tokenizer = Tokenizer::Parse(file, R"({"add_bos_token":true,"bos_token":"abc"})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->EncodePrompt("ab"), ElementsAre(257, 256));
  EXPECT_THAT((*tokenizer)->EncodePrompt("abc"), ElementsAre(257));
}

TEST(Tokenizer, NamesTheMissingFile) {
  const auto tokenizer = Tokenizer::Load("/nonexistent");
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("/nonexistent/tokenizer.json"));
}

}  // namespace
}  // namespace sluice
