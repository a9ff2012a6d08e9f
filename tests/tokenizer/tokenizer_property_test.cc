// Properties of the tokenizer over random texts, ids and cuts.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "common/utf8.h"
#include "tokenizer/bpe.h"
#include "tokenizer/chat_encoder.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/reasoning_parser.h"
#include "tokenizer/stop_matcher.h"
#include "tokenizer/tokenizer.h"

namespace sluice {
namespace {

const Tokenizer& TinyTokenizer() {
  static const Tokenizer* const tokenizer =
      Tokenizer::Load(std::string(SLUICE_SOURCE_DIR) + "/models/deepseek-tiny").value().release();
  return *tokenizer;
}

std::vector<std::string> AddedTokenTexts() {
  std::vector<std::string> texts;
  for (TokenId id = 0; id < TinyTokenizer().vocab_size(); ++id) {
    if (TinyTokenizer().IsAdded(id)) texts.emplace_back(TinyTokenizer().TokenBytes(id));
  }
  return texts;
}

// Any scalar value, with a preference for what tokenizers trip over.
rc::Gen<std::string> AnyText() {
  const auto code_point = rc::gen::weightedOneOf<uint32_t>({
      {6, rc::gen::inRange<uint32_t>(0, 0x80)},
      {2, rc::gen::element<uint32_t>(' ', '\t', '\r', '\n', '.', '\'', '1', '9', 'a', 'Z', '<', '|',
                                     '>')},
      {2, rc::gen::inRange<uint32_t>(0x80, 0x3000)},
      {2, rc::gen::inRange<uint32_t>(0x3000, 0xD800)},
      {1, rc::gen::inRange<uint32_t>(0xE000, 0x110000)},
  });
  return rc::gen::map(rc::gen::container<std::vector<uint32_t>>(code_point),
                      [](const std::vector<uint32_t>& code_points) {
                        std::string text;
                        for (const uint32_t cp : code_points) AppendUtf8(cp, &text);
                        return text;
                      });
}

// The same text in random consecutive pieces.
std::vector<std::string> Cut(const std::string& text) {
  std::vector<std::string> pieces;
  for (size_t begin = 0; begin < text.size();) {
    const size_t size = *rc::gen::inRange<size_t>(1, 6);
    pieces.push_back(text.substr(begin, size));
    begin += size;
  }
  return pieces;
}

RC_GTEST_PROP(TokenizerProperty, DecodingGivesTheTextBack, ()) {
  const std::string text = *AnyText();
  for (const AddedTokens added : {AddedTokens::kMatch, AddedTokens::kIgnore}) {
    RC_ASSERT(TinyTokenizer().Decode(TinyTokenizer().Encode(text, added), false) == text);
  }
}

RC_GTEST_PROP(TokenizerProperty, StreamedTextIsTheDecodedText, ()) {
  const auto ids = *rc::gen::container<std::vector<TokenId>>(
      rc::gen::inRange<TokenId>(-2, TinyTokenizer().vocab_size() + 2));
  for (const bool skip_special : {false, true}) {
    IncrementalDetokenizer detokenizer(TinyTokenizer(), skip_special);
    std::string streamed;
    for (const TokenId id : ids) {
      const std::string delta = detokenizer.Add(id);
      RC_ASSERT(IsValidUtf8(delta));
      streamed += delta;
    }
    RC_ASSERT(streamed + detokenizer.Finish() == TinyTokenizer().Decode(ids, skip_special));
  }
}

// Bytes 0..255 as tokens of their own exercise every way to break UTF-8.
RC_GTEST_PROP(TokenizerProperty, StreamedBytesAreTheDecodedBytes, ()) {
  const auto bytes = *rc::gen::container<std::string>(
      rc::gen::elementOf(std::string("a\x80\x9F\xA0\xBF\xC0\xC3\xE0\xE4\xED\xF0\xF4\xFF")));
  std::string whole;
  AppendUtf8Lossy(bytes, &whole);
  std::string streamed;
  std::string pending;
  for (const char c : bytes) {
    pending.push_back(c);
    const size_t complete = CompleteUtf8Prefix(pending);
    RC_ASSERT(pending.size() - complete <= 3u);
    AppendUtf8Lossy(pending.substr(0, complete), &streamed);
    pending.erase(0, complete);
  }
  AppendUtf8Lossy(pending, &streamed);
  RC_ASSERT(streamed == whole);
}

RC_GTEST_PROP(ChatProperty, NobodysTextBecomesAControlToken, ()) {
  static const std::vector<std::string> controls = AddedTokenTexts();
  std::string content;
  for (const std::string& control : controls) content += *AnyText() + control;
  const ChatFormat format = *rc::gen::element(ChatFormat::kV2, ChatFormat::kV3, ChatFormat::kR1,
                                              ChatFormat::kV31, ChatFormat::kTiny);
  const auto encoder = ChatEncoder::CreateFor(TinyTokenizer(), format).value();
  const auto count_controls = [&](const std::string& text) {
    const std::vector<ChatMessage> messages = {{"system", text, "", {}}, {"user", text, "", {}}};
    const std::vector<TokenId> ids = encoder->Encode(messages, {}).value();
    return std::count_if(ids.begin(), ids.end(),
                         [](TokenId id) { return TinyTokenizer().IsAdded(id); });
  };
  RC_ASSERT(count_controls(content) == count_controls("x"));
}

RC_GTEST_PROP(StopMatcherProperty, DependsOnTheTextAlone, ()) {
  const auto stops = *rc::gen::container<std::vector<std::string>>(
      3, rc::gen::nonEmpty(rc::gen::container<std::string>(rc::gen::elementOf(std::string("ab")))));
  const auto text = *rc::gen::container<std::string>(rc::gen::elementOf(std::string("aaabbbc")));
  const bool include_stop = *rc::gen::arbitrary<bool>();

  // By definition: the shortest prefix that ends with a stop string, and then the first listed.
  std::string expected = text;
  std::string expected_stop;
  for (size_t end = 1; end <= text.size() && expected_stop.empty(); ++end) {
    for (const std::string& stop : stops) {
      if (end < stop.size() || text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
      expected_stop = stop;
      expected = text.substr(0, include_stop ? end : end - stop.size());
      break;
    }
  }

  StopMatcher matcher(stops, include_stop);
  std::string emitted;
  std::string stop;
  for (const std::string& piece : Cut(text)) {
    const StopMatcher::Result result = matcher.Add(piece);
    emitted += result.text;
    if (!result.stopped) continue;
    stop = result.stop;
    break;
  }
  if (stop.empty()) emitted += matcher.Finish();
  RC_ASSERT(stop == expected_stop);
  RC_ASSERT(emitted == expected);
}

RC_GTEST_PROP(ReasoningParserProperty, DependsOnTheTextAlone, ()) {
  const auto parts = *rc::gen::container<std::vector<std::string>>(
      rc::gen::element<std::string>("<think>", "</think>", "\n", "a", "<", "</", "think>", " "));
  std::string text;
  for (const std::string& part : parts) text += part;
  const auto start =
      *rc::gen::element(ChatEncoder::Start::kInReasoning, ChatEncoder::Start::kInContent,
                        ChatEncoder::Start::kModelDecides);
  const auto run = [&](const std::vector<std::string>& pieces) {
    ReasoningParser parser(start);
    std::pair<std::string, std::string> out;
    for (const std::string& piece : pieces) {
      const ReasoningParser::Delta delta = parser.Add(piece);
      out.first += delta.reasoning;
      out.second += delta.content;
    }
    const ReasoningParser::Delta delta = parser.Finish();
    return std::make_pair(out.first + delta.reasoning, out.second + delta.content);
  };
  const auto whole = run({text});
  RC_ASSERT(run(Cut(text)) == whole);
  // Nothing is lost but one tag of each kind and the newlines beside them.
  RC_ASSERT(whole.first.size() + whole.second.size() + 7 + 8 + 4 >= text.size());
}

// As the definition says: the pair of the lowest rank, the leftmost of those, again and again.
std::vector<TokenId> MergeStepByStep(const std::string& text, const std::vector<BpeMerge>& merges) {
  std::vector<TokenId> tokens(text.begin(), text.end());
  while (true) {
    size_t best_rank = merges.size();
    size_t best_position = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left != tokens[i] || merges[rank].right != tokens[i + 1]) continue;
        best_rank = rank;
        best_position = i;
      }
    }
    if (best_rank == merges.size()) break;
    tokens[best_position] = merges[best_rank].result;
    tokens.erase(tokens.begin() + best_position + 1);
  }
  return tokens;
}

// Random rules over a small alphabet.
RC_GTEST_PROP(BpeProperty, MergesByRankAndThenFromTheLeft, ()) {
  std::array<TokenId, 256> byte_tokens;
  for (int byte = 0; byte < 256; ++byte) byte_tokens[byte] = byte;
  std::vector<BpeMerge> merges;
  TokenId next = 256;
  const int num_merges = *rc::gen::inRange(0, 12);
  for (int i = 0; i < num_merges; ++i) {
    const auto symbol = [&] {
      const TokenId pick = *rc::gen::inRange<TokenId>(0, 3 + next - 256);
      return pick < 3 ? 'a' + pick : 256 + pick - 3;
    };
    const TokenId left = symbol();
    const TokenId right = symbol();
    const bool known = std::any_of(merges.begin(), merges.end(), [&](const BpeMerge& merge) {
      return merge.left == left && merge.right == right;
    });
    if (!known) merges.push_back({left, right, next++});
  }
  const auto text = *rc::gen::container<std::string>(rc::gen::elementOf(std::string("abc")));

  const Bpe bpe(byte_tokens, merges);
  Bpe::Scratch scratch;
  std::vector<TokenId> tokens;
  bpe.Encode(text, &scratch, &tokens);
  RC_ASSERT(tokens == MergeStepByStep(text, merges));
}

// Long pieces go through another queue.
TEST(Bpe, LongPiecesMergeAsShortOnesDo) {
  std::array<TokenId, 256> byte_tokens;
  for (int byte = 0; byte < 256; ++byte) byte_tokens[byte] = byte;
  // aa, bb, aab, and aabaa with a better rank than one of the two ways to make its parts.
  const std::vector<BpeMerge> merges = {{'a', 'a', 256}, {256, 'b', 257}, {257, 256, 258},
                                        {'b', 'b', 259}, {'a', 'b', 260}, {'a', 260, 257},
                                        {256, 256, 261}, {261, 261, 262}};
  const Bpe bpe(byte_tokens, merges);
  std::mt19937 random(7);
  for (const int kinds : {1, 2, 3}) {
    std::string text;
    while (text.size() < 5000) text += static_cast<char>('a' + random() % kinds);
    Bpe::Scratch scratch;
    std::vector<TokenId> tokens;
    bpe.Encode(text, &scratch, &tokens);
    EXPECT_TRUE(tokens == MergeStepByStep(text, merges)) << kinds;
  }
}

RC_GTEST_PROP(MergeQueues, GiveTheSameOrder, ()) {
  HeapMergeQueue heap;
  RankMergeQueue ranks;
  const auto pop = [&] {
    const MergeCandidate a = heap.Pop();
    const MergeCandidate b = ranks.Pop();
    RC_ASSERT(std::tie(a.rank, a.position, a.left, a.right) ==
              std::tie(b.rank, b.position, b.left, b.right));
  };
  const auto steps = *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 60));
  for (const int step : steps) {
    if (step % 3 == 0 && !heap.empty()) {
      pop();
    } else {
      const int32_t rank = step % 4;  // a rank is one pair
      const MergeCandidate candidate = {rank, step / 4, rank + 100, rank + 200};
      heap.Push(candidate);
      ranks.Push(candidate);
    }
    RC_ASSERT(heap.empty() == ranks.empty());
  }
  while (!heap.empty()) pop();
  RC_ASSERT(ranks.empty());
}

// One word without an end: merging must not go through all of it for each merge.
TEST(BpeTime, ALongPieceIsNotQuadratic) {
  for (const std::string& unit : {std::string("a"), std::string("the"), std::string("中")}) {
    std::string text;
    while (text.size() < 1000000) text += unit;
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<TokenId> ids = TinyTokenizer().Encode(text, AddedTokens::kIgnore);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10)) << unit;
    EXPECT_EQ(TinyTokenizer().Decode(ids, false), text);
  }
}

}  // namespace
}  // namespace sluice
