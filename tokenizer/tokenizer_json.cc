#include "tokenizer/tokenizer_json.h"

#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "common/utf8.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/json_fields.h"

namespace sluice {
namespace {

// Longer added tokens are refused: matching costs their length at each '<' of a text.
constexpr size_t kMaxAddedTokenBytes = 256;

using VocabMap = absl::flat_hash_map<absl::string_view, TokenId>;

// `field` must be absent, null, or as given.
absl::Status ExpectFalse(const JsonField& parent, absl::string_view key) {
  SLUICE_ASSIGN_OR_RETURN(const JsonField field, parent.Member(key));
  if (field.is_null()) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const bool value, field.Bool());
  return value ? field.Unsupported("true is not supported") : absl::OkStatus();
}

absl::Status ExpectNull(const JsonField& parent, absl::string_view key) {
  SLUICE_ASSIGN_OR_RETURN(const JsonField field, parent.Member(key));
  if (field.is_null()) return absl::OkStatus();
  if (field.is_string()) {
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, field.String());
    if (text.empty()) return absl::OkStatus();
  }
  return field.Unsupported("only null is supported");
}

absl::Status ExpectString(const JsonField& parent, absl::string_view key,
                          absl::string_view expected) {
  SLUICE_ASSIGN_OR_RETURN(const JsonField field, parent.Member(key));
  SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, field.String());
  if (text == expected) return absl::OkStatus();
  return field.Unsupported(absl::StrCat("'", text, "' is not supported, only '", expected, "'"));
}

absl::Status CheckNormalizer(const JsonField& normalizer) {
  if (normalizer.is_null()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(ExpectString(normalizer, "type", "Sequence"));
  SLUICE_ASSIGN_OR_RETURN(const JsonField steps, normalizer.Member("normalizers"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<JsonField> list, steps.Array());
  if (list.empty()) return absl::OkStatus();
  return list[0].Unsupported("normalizers are not supported; DeepSeek's files have none");
}

absl::Status CheckByteLevel(const JsonField& step) {
  SLUICE_RETURN_IF_ERROR(ExpectString(step, "type", "ByteLevel"));
  SLUICE_RETURN_IF_ERROR(ExpectFalse(step, "add_prefix_space"));
  // Its default is true, so it has to be there.
  SLUICE_ASSIGN_OR_RETURN(const JsonField use_regex, step.Member("use_regex"));
  if (use_regex.is_null()) return use_regex.Unsupported("absent means true: not supported");
  return ExpectFalse(step, "use_regex");
}

absl::Status CheckSplit(const JsonField& step, absl::string_view expected_pattern) {
  SLUICE_RETURN_IF_ERROR(ExpectString(step, "type", "Split"));
  SLUICE_RETURN_IF_ERROR(ExpectString(step, "behavior", "Isolated"));
  SLUICE_RETURN_IF_ERROR(ExpectFalse(step, "invert"));
  SLUICE_ASSIGN_OR_RETURN(const JsonField pattern, step.Member("pattern"));
  SLUICE_ASSIGN_OR_RETURN(const JsonField regex, pattern.Member("Regex"));
  SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, regex.String());
  if (text == expected_pattern) return absl::OkStatus();
  return regex.Unsupported(absl::StrCat("this regular expression is not known: '", text, "'"));
}

absl::Status CheckPreTokenizerSteps(const std::vector<JsonField>& steps, PreTokenizerKind kind) {
  const std::vector<std::string> patterns = PreTokenizerPatterns(kind);
  for (size_t i = 0; i < patterns.size(); ++i) {
    SLUICE_RETURN_IF_ERROR(CheckSplit(steps[i], patterns[i]));
  }
  size_t next = patterns.size();
  if (kind == PreTokenizerKind::kDeepSeekLlm) {
    SLUICE_RETURN_IF_ERROR(ExpectString(steps[next], "type", "Digits"));
    SLUICE_ASSIGN_OR_RETURN(const JsonField individual, steps[next].Member("individual_digits"));
    SLUICE_ASSIGN_OR_RETURN(const bool value, individual.Bool());
    if (!value) return individual.Unsupported("only true is supported");
    ++next;
  }
  return CheckByteLevel(steps[next]);
}

absl::StatusOr<PreTokenizerKind> ParsePreTokenizer(const JsonField& pre_tokenizer) {
  if (pre_tokenizer.is_null()) return pre_tokenizer.Unsupported("missing");
  SLUICE_RETURN_IF_ERROR(ExpectString(pre_tokenizer, "type", "Sequence"));
  SLUICE_ASSIGN_OR_RETURN(const JsonField list, pre_tokenizer.Member("pretokenizers"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<JsonField> steps, list.Array());
  // The number of steps tells the two known sequences apart; then every step must be exactly as
  // known.
  PreTokenizerKind kind;
  if (steps.size() == 4) {
    kind = PreTokenizerKind::kDeepSeekV3;
  } else if (steps.size() == 7) {
    kind = PreTokenizerKind::kDeepSeekLlm;
  } else {
    return list.Unsupported(absl::StrCat("a sequence of ", steps.size(),
                                         " steps is not known; DeepSeek-V3's has 4, V2's has 7"));
  }
  SLUICE_RETURN_IF_ERROR(CheckPreTokenizerSteps(steps, kind));
  return kind;
}

// Checks texts and ids of model.vocab. The keys of `map` borrow from the document.
absl::Status ParseVocab(const JsonField& vocab, VocabMap* map, TokenizerDefinition* definition) {
  SLUICE_ASSIGN_OR_RETURN(const simdjson::dom::object object, vocab.Object());
  absl::flat_hash_set<TokenId> ids;
  for (const simdjson::dom::key_value_pair pair : object) {
    const absl::string_view text(pair.key.data(), pair.key.size());
    const JsonField field(absl::StrCat(vocab.path(), "['", text, "']"), pair.value);
    SLUICE_ASSIGN_OR_RETURN(const int64_t id, field.Int(0, kMaxTokenId));
    if (text.empty()) return field.Invalid("an empty token");
    if (!map->emplace(text, static_cast<TokenId>(id)).second) return field.Invalid("appears twice");
    if (!ids.insert(static_cast<TokenId>(id)).second) {
      return field.Invalid(absl::StrCat("id ", id, " is used by another token too"));
    }
    definition->vocab.push_back({static_cast<TokenId>(id), std::string(text)});
  }
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    AppendUtf8(ByteAlphabet()[byte], &symbol);
    const auto it = map->find(symbol);
    definition->byte_tokens[byte] = it == map->end() ? Bpe::kNoToken : it->second;
    // Bytes that no UTF-8 text contains may be missing: V2's vocabulary lacks them.
    const bool never_in_utf8 = byte == 0xC0 || byte == 0xC1 || byte >= 0xF5;
    if (it == map->end() && !never_in_utf8) {
      return vocab.Invalid(absl::StrCat("lacks '", symbol, "', the token of byte ", byte));
    }
  }
  return absl::OkStatus();
}

// "left right" (older files) or ["left", "right"].
absl::StatusOr<std::pair<absl::string_view, absl::string_view>> ParseMergePair(
    const JsonField& merge) {
  if (merge.is_array()) {
    SLUICE_ASSIGN_OR_RETURN(const std::vector<JsonField> sides, merge.Array());
    if (sides.size() != 2) return merge.Invalid("a merge has two sides");
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view left, sides[0].String());
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view right, sides[1].String());
    return std::make_pair(left, right);
  }
  SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, merge.String());
  const std::vector<absl::string_view> sides = absl::StrSplit(text, ' ');
  if (sides.size() != 2) return merge.Invalid("must be two tokens with one space between them");
  return std::make_pair(sides[0], sides[1]);
}

absl::Status ParseMerges(const JsonField& merges, const VocabMap& vocab,
                         TokenizerDefinition* definition) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<JsonField> list, merges.Array());
  const auto id_of = [&](const JsonField& merge,
                         absl::string_view text) -> absl::StatusOr<TokenId> {
    const auto it = vocab.find(text);
    if (it == vocab.end()) return merge.Invalid(absl::StrCat("'", text, "' is not in model.vocab"));
    return it->second;
  };
  absl::flat_hash_set<std::pair<TokenId, TokenId>> seen;
  definition->merges.reserve(list.size());
  for (const JsonField& merge : list) {
    SLUICE_ASSIGN_OR_RETURN(const auto pair, ParseMergePair(merge));
    SLUICE_ASSIGN_OR_RETURN(const TokenId left, id_of(merge, pair.first));
    SLUICE_ASSIGN_OR_RETURN(const TokenId right, id_of(merge, pair.second));
    SLUICE_ASSIGN_OR_RETURN(const TokenId result,
                            id_of(merge, absl::StrCat(pair.first, pair.second)));
    if (!seen.emplace(left, right).second) return merge.Invalid("the same pair appears twice");
    definition->merges.push_back({left, right, result});
  }
  return absl::OkStatus();
}

absl::Status ParseModel(const JsonField& model, VocabMap* vocab, TokenizerDefinition* definition) {
  SLUICE_RETURN_IF_ERROR(ExpectString(model, "type", "BPE"));
  for (const char* key :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    SLUICE_RETURN_IF_ERROR(ExpectNull(model, key));
  }
  for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"}) {
    SLUICE_RETURN_IF_ERROR(ExpectFalse(model, key));
  }
  SLUICE_ASSIGN_OR_RETURN(const JsonField vocab_field, model.Member("vocab"));
  SLUICE_RETURN_IF_ERROR(ParseVocab(vocab_field, vocab, definition));
  SLUICE_ASSIGN_OR_RETURN(const JsonField merges, model.Member("merges"));
  return ParseMerges(merges, *vocab, definition);
}

// An added token may repeat an entry of model.vocab, but not contradict it.
absl::Status CheckAgainstVocab(const JsonField& id_field, TokenId id, absl::string_view text,
                               const VocabMap& vocab,
                               const absl::flat_hash_map<TokenId, absl::string_view>& vocab_text) {
  const auto same_text = vocab.find(text);
  if (same_text != vocab.end() && same_text->second != id) {
    return id_field.Invalid(
        absl::StrCat(id, " is '", text, "', but model.vocab gives this token ", same_text->second));
  }
  const auto same_id = vocab_text.find(id);
  if (same_id == vocab_text.end()) return absl::OkStatus();
  if (same_id->second != text) {
    return id_field.Invalid(absl::StrCat(id, " is '", text, "', but '", same_id->second,
                                         "' in model.vocab: it is another token there"));
  }
  // One spelling, two texts: the vocabulary writes bytes, added_tokens plain text.
  const std::string bytes = BytesOfVocabEntry(text);
  if (bytes == text) return absl::OkStatus();
  return id_field.Invalid(absl::StrCat(id, " is the text '", text, "', but the bytes '",
                                       absl::CHexEscape(bytes), "' in model.vocab"));
}

absl::Status ParseAddedTokens(const JsonField& added_tokens, const VocabMap& vocab,
                              TokenizerDefinition* definition) {
  if (added_tokens.is_null()) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const std::vector<JsonField> list, added_tokens.Array());
  absl::flat_hash_map<TokenId, absl::string_view> vocab_text;
  for (const auto& [text, id] : vocab) vocab_text.emplace(id, text);
  absl::flat_hash_set<absl::string_view> texts;
  absl::flat_hash_map<TokenId, absl::string_view> text_of;
  for (const JsonField& item : list) {
    SLUICE_ASSIGN_OR_RETURN(const JsonField id_field, item.Member("id"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t wide_id, id_field.Int(0, kMaxTokenId));
    const TokenId id = static_cast<TokenId>(wide_id);
    SLUICE_ASSIGN_OR_RETURN(const JsonField content, item.Member("content"));
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, content.String());
    if (text.empty() || text.size() > kMaxAddedTokenBytes) {
      return content.Invalid(absl::StrCat("must have 1 to ", kMaxAddedTokenBytes, " bytes"));
    }
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      SLUICE_RETURN_IF_ERROR(ExpectFalse(item, key));
    }
    SLUICE_ASSIGN_OR_RETURN(const JsonField special_field, item.Member("special"));
    SLUICE_ASSIGN_OR_RETURN(const bool special, special_field.Bool());
    SLUICE_ASSIGN_OR_RETURN(const JsonField normalized_field, item.Member("normalized"));
    SLUICE_ASSIGN_OR_RETURN(const bool normalized, normalized_field.Bool());

    if (!texts.insert(text).second) return content.Invalid("appears twice");
    const auto [same_id, is_new] = text_of.emplace(id, text);
    if (!is_new) {
      return id_field.Invalid(
          absl::StrCat(id, " appears twice, for '", same_id->second, "' and '", text, "'"));
    }
    SLUICE_RETURN_IF_ERROR(CheckAgainstVocab(id_field, id, text, vocab, vocab_text));
    definition->added_tokens.push_back({id, std::string(text), special, normalized});
  }
  return absl::OkStatus();
}

// "bos_token": "text", or an object with "content", or null.
absl::StatusOr<std::optional<std::string>> ParseConfigToken(const JsonField& root,
                                                            absl::string_view key) {
  SLUICE_ASSIGN_OR_RETURN(const JsonField token, root.Member(key));
  if (token.is_null()) return std::nullopt;
  JsonField content = token;
  if (!token.is_string()) {
    SLUICE_ASSIGN_OR_RETURN(content, token.Member("content"));
  }
  SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, content.String());
  return std::string(text);
}

// A string, or a list of {name, template} of which "default" is taken.
absl::StatusOr<std::string> ParseChatTemplate(const JsonField& field) {
  if (field.is_null()) return std::string();
  if (field.is_string()) {
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, field.String());
    return std::string(text);
  }
  SLUICE_ASSIGN_OR_RETURN(const std::vector<JsonField> list, field.Array());
  for (const JsonField& item : list) {
    SLUICE_ASSIGN_OR_RETURN(const JsonField name_field, item.Member("name"));
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view name, name_field.String());
    if (name != "default") continue;
    SLUICE_ASSIGN_OR_RETURN(const JsonField text_field, item.Member("template"));
    SLUICE_ASSIGN_OR_RETURN(const absl::string_view text, text_field.String());
    return std::string(text);
  }
  return field.Invalid("has no template named 'default'");
}

}  // namespace

absl::StatusOr<TokenizerDefinition> ParseTokenizerJson(absl::string_view json) {
  SLUICE_ASSIGN_OR_RETURN(const JsonDocument document, JsonDocument::Parse("tokenizer.json", json));
  const JsonField root("tokenizer.json: ", document.root());
  TokenizerDefinition definition;

  SLUICE_ASSIGN_OR_RETURN(const JsonField normalizer, root.Member("normalizer"));
  SLUICE_RETURN_IF_ERROR(CheckNormalizer(normalizer));
  SLUICE_ASSIGN_OR_RETURN(const JsonField pre_tokenizer, root.Member("pre_tokenizer"));
  SLUICE_ASSIGN_OR_RETURN(definition.pre_tokenizer, ParsePreTokenizer(pre_tokenizer));
  // ByteLevel as a post-processor only trims offsets; a template would add tokens.
  SLUICE_ASSIGN_OR_RETURN(const JsonField post_processor, root.Member("post_processor"));
  if (!post_processor.is_null()) {
    SLUICE_RETURN_IF_ERROR(ExpectString(post_processor, "type", "ByteLevel"));
  }
  SLUICE_ASSIGN_OR_RETURN(const JsonField decoder, root.Member("decoder"));
  SLUICE_RETURN_IF_ERROR(ExpectString(decoder, "type", "ByteLevel"));
  // "truncation" and "padding" are defaults of calls to that library, not part of the vocabulary.

  VocabMap vocab;
  SLUICE_ASSIGN_OR_RETURN(const JsonField model, root.Member("model"));
  SLUICE_RETURN_IF_ERROR(ParseModel(model, &vocab, &definition));
  SLUICE_ASSIGN_OR_RETURN(const JsonField added_tokens, root.Member("added_tokens"));
  SLUICE_RETURN_IF_ERROR(ParseAddedTokens(added_tokens, vocab, &definition));
  return definition;
}

absl::StatusOr<TokenizerConfig> ParseTokenizerConfigJson(absl::string_view json) {
  SLUICE_ASSIGN_OR_RETURN(const JsonDocument document,
                          JsonDocument::Parse("tokenizer_config.json", json));
  const JsonField root("tokenizer_config.json: ", document.root());
  TokenizerConfig config;
  SLUICE_ASSIGN_OR_RETURN(const JsonField add_bos, root.Member("add_bos_token"));
  if (!add_bos.is_null()) {
    SLUICE_ASSIGN_OR_RETURN(config.add_bos_token, add_bos.Bool());
  }
  SLUICE_ASSIGN_OR_RETURN(config.bos_token, ParseConfigToken(root, "bos_token"));
  SLUICE_ASSIGN_OR_RETURN(config.eos_token, ParseConfigToken(root, "eos_token"));
  SLUICE_ASSIGN_OR_RETURN(const JsonField chat_template, root.Member("chat_template"));
  SLUICE_ASSIGN_OR_RETURN(config.chat_template, ParseChatTemplate(chat_template));
  return config;
}

}  // namespace sluice
