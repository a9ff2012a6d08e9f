#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "common/read_file.h"
#include "common/status_macros.h"
#include "common/utf8.h"
#include "tokenizer/added_token_matcher.h"
#include "tokenizer/bpe.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_json.h"

namespace sluice {
namespace {

// The real file is 8 MB; a larger one than this is not a tokenizer.
constexpr size_t kMaxFileBytes = size_t{256} << 20;

class BpeTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const TokenizerDefinition& definition,
                                                           TokenizerConfig config);

  std::vector<TokenId> EncodeUpTo(absl::string_view text, AddedTokens added,
                                  size_t max_tokens) const override;
  std::vector<TokenId> EncodePromptUpTo(absl::string_view text, size_t max_tokens) const override;
  absl::string_view TokenBytes(TokenId id) const override;
  size_t max_token_bytes() const override { return max_token_bytes_; }
  std::string Decode(absl::Span<const TokenId> ids, bool skip_special_tokens) const override;
  bool IsSpecial(TokenId id) const override { return HasFlag(id, kSpecial); }
  bool IsAdded(TokenId id) const override { return HasFlag(id, kAdded); }
  std::optional<TokenId> AddedTokenId(absl::string_view text) const override;
  bool IsDefined(TokenId id) const override { return HasFlag(id, kDefined); }
  TokenId vocab_size() const override { return static_cast<TokenId>(tokens_.size()); }
  std::optional<TokenId> bos_token_id() const override { return bos_token_id_; }
  std::optional<TokenId> eos_token_id() const override { return eos_token_id_; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  enum Flag : uint8_t { kDefined = 1, kAdded = 2, kSpecial = 4 };
  struct Token {
    std::string bytes;
    uint8_t flags = 0;
  };

  explicit BpeTokenizer(const TokenizerDefinition& definition)
      : pre_tokenizer_(definition.pre_tokenizer), bpe_(definition.byte_tokens, definition.merges) {}

  void DefineToken(TokenId id, std::string bytes, uint8_t flags);
  bool HasFlag(TokenId id, Flag flag) const {
    return id >= 0 && id < vocab_size() && (tokens_[id].flags & flag) != 0;
  }

  // Constant after Create.
  const PreTokenizer pre_tokenizer_;
  const Bpe bpe_;
  std::vector<Token> tokens_;  // by id
  size_t max_token_bytes_ = 1;
  AddedTokenMatcher added_tokens_;
  absl::flat_hash_map<std::string, TokenId> added_token_ids_;
  std::optional<TokenId> bos_token_id_;
  std::optional<TokenId> eos_token_id_;
  bool add_bos_token_ = false;
  std::string chat_template_;
};

void BpeTokenizer::DefineToken(TokenId id, std::string bytes, uint8_t flags) {
  if (id >= vocab_size()) tokens_.resize(id + 1);
  Token& token = tokens_[id];
  token.bytes = std::move(bytes);
  token.flags |= flags;
  max_token_bytes_ = std::max(max_token_bytes_, token.bytes.size());
}

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Create(
    const TokenizerDefinition& definition, TokenizerConfig config) {
  std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer(definition));
  absl::flat_hash_map<absl::string_view, TokenId> ids;
  for (const TokenizerDefinition::Token& token : definition.vocab) {
    tokenizer->DefineToken(token.id, BytesOfVocabEntry(token.text), kDefined);
    ids.emplace(token.text, token.id);
  }
  for (const TokenizerDefinition::AddedToken& token : definition.added_tokens) {
    // Its text is plain text: "ø" is the letter here, not the byte that the alphabet writes so.
    tokenizer->DefineToken(token.id, token.text,
                           kDefined | kAdded | (token.special ? kSpecial : 0));
    tokenizer->added_tokens_.Add(token.text, token.normalized, token.id);
    tokenizer->added_token_ids_.emplace(token.text, token.id);
    ids.emplace(token.text, token.id);
  }

  const auto resolve =
      [&](absl::string_view key,
          const std::optional<std::string>& text) -> absl::StatusOr<std::optional<TokenId>> {
    if (!text.has_value()) return std::nullopt;
    const auto it = ids.find(*text);
    if (it != ids.end()) return it->second;
    return absl::InvalidArgumentError(absl::StrCat("tokenizer_config.json: ", key, ": '", *text,
                                                   "' is not a token of tokenizer.json"));
  };
  SLUICE_ASSIGN_OR_RETURN(tokenizer->bos_token_id_, resolve("bos_token", config.bos_token));
  SLUICE_ASSIGN_OR_RETURN(tokenizer->eos_token_id_, resolve("eos_token", config.eos_token));
  if (config.add_bos_token && !tokenizer->bos_token_id_.has_value()) {
    return absl::InvalidArgumentError(
        "tokenizer_config.json: add_bos_token: true, but there is no bos_token");
  }
  tokenizer->add_bos_token_ = config.add_bos_token;
  tokenizer->chat_template_ = std::move(config.chat_template);
  return tokenizer;
}

std::vector<TokenId> BpeTokenizer::EncodeUpTo(absl::string_view text, AddedTokens added,
                                              size_t max_tokens) const {
  std::vector<AddedTokenMatcher::Part> parts;
  if (added == AddedTokens::kMatch) {
    parts = added_tokens_.Split(text);
  } else {
    parts.push_back({text, -1});
  }
  std::vector<TokenId> ids;
  std::vector<absl::string_view> pieces;
  Bpe::Scratch scratch;
  for (const AddedTokenMatcher::Part& part : parts) {
    if (part.added_token >= 0) {
      ids.push_back(part.added_token);
      continue;
    }
    pieces.clear();
    pre_tokenizer_.Split(part.text, &pieces);
    for (const absl::string_view piece : pieces) {
      if (ids.size() > max_tokens) return ids;
      bpe_.Encode(piece, &scratch, &ids);
    }
  }
  return ids;
}

std::vector<TokenId> BpeTokenizer::EncodePromptUpTo(absl::string_view text,
                                                    size_t max_tokens) const {
  std::vector<TokenId> ids = EncodeUpTo(text, AddedTokens::kMatch, max_tokens);
  if (add_bos_token_ && (ids.empty() || ids.front() != *bos_token_id_)) {
    ids.insert(ids.begin(), *bos_token_id_);
  }
  return ids;
}

absl::string_view BpeTokenizer::TokenBytes(TokenId id) const {
  return id >= 0 && id < vocab_size() ? absl::string_view(tokens_[id].bytes) : absl::string_view();
}

std::string BpeTokenizer::Decode(absl::Span<const TokenId> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const TokenId id : ids) {
    if (skip_special_tokens && IsSpecial(id)) continue;
    bytes.append(TokenBytes(id).data(), TokenBytes(id).size());
  }
  std::string text;
  text.reserve(bytes.size());
  AppendUtf8Lossy(bytes, &text);
  return text;
}

std::optional<TokenId> BpeTokenizer::AddedTokenId(absl::string_view text) const {
  const auto it = added_token_ids_.find(text);
  if (it == added_token_ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(absl::string_view tokenizer_json,
                                                            absl::string_view config_json) {
  SLUICE_ASSIGN_OR_RETURN(const TokenizerDefinition definition, ParseTokenizerJson(tokenizer_json));
  TokenizerConfig config;
  if (!config_json.empty()) {
    SLUICE_ASSIGN_OR_RETURN(config, ParseTokenizerConfigJson(config_json));
  }
  return BpeTokenizer::Create(definition, std::move(config));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  SLUICE_ASSIGN_OR_RETURN(const std::string json,
                          ReadFile(model_dir + "/tokenizer.json", kMaxFileBytes));
  absl::StatusOr<TokenizerDefinition> definition = ParseTokenizerJson(json);
  if (!definition.ok()) return Annotate(definition.status(), model_dir);

  TokenizerConfig config;
  const absl::StatusOr<std::string> config_json =
      ReadFile(model_dir + "/tokenizer_config.json", kMaxFileBytes);
  if (config_json.ok()) {
    absl::StatusOr<TokenizerConfig> parsed = ParseTokenizerConfigJson(*config_json);
    if (!parsed.ok()) return Annotate(parsed.status(), model_dir);
    config = *std::move(parsed);
  } else if (!absl::IsNotFound(config_json.status())) {
    return config_json.status();
  }
  if (config.chat_template.empty()) {
    const absl::StatusOr<std::string> jinja =
        ReadFile(model_dir + "/chat_template.jinja", kMaxFileBytes);
    if (jinja.ok()) {
      config.chat_template = *jinja;
    } else if (!absl::IsNotFound(jinja.status())) {
      return jinja.status();
    }
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      BpeTokenizer::Create(*definition, std::move(config));
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), model_dir);
  return tokenizer;
}

}  // namespace sluice
