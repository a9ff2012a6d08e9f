// tokenizer.json from anywhere: refused, or a tokenizer whose ids are all within its vocabulary and
// that gives text back as it took it.
#include "common/check.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_json.h"

namespace sluice {
namespace {

bool HasEveryByte(const TokenizerDefinition& definition) {
  for (TokenId id : definition.byte_tokens) {
    if (id == Bpe::kNoToken) return false;
  }
  return true;
}

void Fuzz(absl::string_view json) {
  const absl::StatusOr<TokenizerDefinition> definition = ParseTokenizerJson(json);
  const auto tokenizer = Tokenizer::Parse(json, "");
  if (!definition.ok()) {
    SLUICE_CHECK(!definition.status().message().empty() && !tokenizer.ok());
    return;
  }
  if (!tokenizer.ok()) return;
  const bool has_every_byte = HasEveryByte(*definition);
  for (absl::string_view text : {"The answer is 1234567 !!\n\n",
                                 "caf\u00e9 \u4f60\u597d \U0001f600\t", "<\uff5cUser\uff5c>a"}) {
    for (AddedTokens added : {AddedTokens::kIgnore, AddedTokens::kMatch}) {
      const std::vector<TokenId> ids = (*tokenizer)->Encode(text, added);
      for (TokenId id : ids) {
        SLUICE_CHECK(id >= 0 && id < (*tokenizer)->vocab_size() && (*tokenizer)->IsDefined(id));
      }
      if (has_every_byte) SLUICE_CHECK((*tokenizer)->Decode(ids, false) == text);
    }
  }
  for (const TokenizerDefinition::AddedToken& token : definition->added_tokens) {
    SLUICE_CHECK((*tokenizer)->IsAdded(token.id));
    SLUICE_CHECK((*tokenizer)->TokenBytes(token.id) == token.text);
  }
}

}  // namespace
}  // namespace sluice

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::Fuzz({reinterpret_cast<const char*>(data), size});
  return 0;
}
