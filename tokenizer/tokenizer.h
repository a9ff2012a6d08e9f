// Text <-> token ids of a Hugging Face tokenizer.json (byte-level BPE of the DeepSeek-V3 kind).
// Immutable after loading; any thread.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace sluice {

enum class AddedTokens {
  kMatch,   // Hugging Face's behaviour: "<｜User｜>" in the text becomes the control token
  kIgnore,  // text stays text: for what users wrote in a chat
};

class Tokenizer {
 public:
  static constexpr size_t kAllTokens = std::numeric_limits<size_t>::max();

  virtual ~Tokenizer() = default;

  // Reads tokenizer.json and, if present, tokenizer_config.json of a model folder. A pre-tokenizer,
  // normaliser or model that is not known exactly is refused by name, never approximated.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);
  // The same from the files' contents, for tests; `config_json` may be empty.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(absl::string_view tokenizer_json,
                                                          absl::string_view config_json);

  // REQUIRES: `text` is valid UTF-8. No BOS is added.
  std::vector<TokenId> Encode(absl::string_view text, AddedTokens added) const {
    return EncodeUpTo(text, added, kAllTokens);
  }
  // The same, but it may stop once there are more than `max_tokens`: for who refuses that many.
  virtual std::vector<TokenId> EncodeUpTo(absl::string_view text, AddedTokens added,
                                          size_t max_tokens) const = 0;
  // Encode(text, kMatch), with BOS first if tokenizer_config.json asks for it (add_bos_token) and
  // the text does not already begin with it.
  std::vector<TokenId> EncodePrompt(absl::string_view text) const {
    return EncodePromptUpTo(text, kAllTokens);
  }
  virtual std::vector<TokenId> EncodePromptUpTo(absl::string_view text,
                                                size_t max_tokens) const = 0;

  // The token's raw bytes; may be part of a character. Unknown ids: empty.
  virtual absl::string_view TokenBytes(TokenId id) const = 0;
  // The most bytes of text that one token can stand for: no text of n bytes gives fewer than
  // n / max_token_bytes() tokens, whatever is in it.
  virtual size_t max_token_bytes() const = 0;
  // Whole-sequence decode; each maximal invalid UTF-8 subpart becomes U+FFFD. Ids outside the
  // vocabulary add nothing.
  virtual std::string Decode(absl::Span<const TokenId> ids, bool skip_special_tokens) const = 0;

  virtual bool IsSpecial(TokenId id) const = 0;  // special=true in added_tokens
  virtual bool IsAdded(TokenId id) const = 0;
  // An added token by its exact text, for example "<｜User｜>".
  virtual std::optional<TokenId> AddedTokenId(absl::string_view text) const = 0;
  // An entry of the base vocabulary or added tokens exists for this id.
  virtual bool IsDefined(TokenId id) const = 0;
  virtual TokenId vocab_size() const = 0;  // one more than the largest defined id
  virtual std::optional<TokenId> bos_token_id() const = 0;
  virtual std::optional<TokenId> eos_token_id() const = 0;
  // The template of tokenizer_config.json or chat_template.jinja, or "".
  virtual const std::string& chat_template() const = 0;
};

}  // namespace sluice
