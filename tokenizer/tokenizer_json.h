// Reads and checks tokenizer.json and tokenizer_config.json. The files may come from anywhere:
// every field is checked, whatever is not known exactly is refused by name, and nothing is indexed
// by a number from the file before it was checked. Pure functions, any thread.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "tokenizer/bpe.h"
#include "tokenizer/pre_tokenizer.h"

namespace sluice {

// Larger ids are refused: tables are indexed by id (DeepSeek-V4 ends at 129,280).
inline constexpr TokenId kMaxTokenId = (1 << 22) - 1;

struct TokenizerDefinition {
  struct Token {
    TokenId id;
    std::string text;  // as in the file: see BytesOfVocabEntry
  };
  struct AddedToken {
    TokenId id;
    std::string text;  // plain, also where all of it is in ByteAlphabet()
    bool special;
    bool normalized;
  };
  PreTokenizerKind pre_tokenizer = PreTokenizerKind::kDeepSeekV3;
  std::vector<Token> vocab;              // no id and no text twice
  std::array<TokenId, 256> byte_tokens;  // Bpe::kNoToken where there is none
  std::vector<BpeMerge> merges;          // in rank order, no pair twice
  std::vector<AddedToken> added_tokens;  // no id and no text twice, consistent with `vocab`
};

// INVALID_ARGUMENT or UNIMPLEMENTED, with the path of the field ("model.merges[17]: ...").
absl::StatusOr<TokenizerDefinition> ParseTokenizerJson(absl::string_view json);

struct TokenizerConfig {
  bool add_bos_token = false;
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::string chat_template;  // "" if there is none
};

absl::StatusOr<TokenizerConfig> ParseTokenizerConfigJson(absl::string_view json);

}  // namespace sluice
