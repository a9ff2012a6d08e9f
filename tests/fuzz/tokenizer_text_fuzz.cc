// Any text through deepseek-tiny's tokenizer: it comes back as it was, whole and token by token,
// and any ids, even unknown ones, decode to valid UTF-8.
#include <cstring>

#include "common/check.h"
#include "common/utf8.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/tokenizer.h"

namespace sluice {
namespace {

const Tokenizer& TinyTokenizer() {
  static const auto tokenizer = Tokenizer::Load(SLUICE_SOURCE_DIR "/models/deepseek-tiny");
  SLUICE_CHECK(tokenizer.ok());
  return **tokenizer;
}

std::string DecodeIncrementally(const std::vector<TokenId>& ids, bool skip_special_tokens) {
  IncrementalDetokenizer detokenizer(TinyTokenizer(), skip_special_tokens);
  std::string text;
  for (TokenId id : ids) text += detokenizer.Add(id);
  return text + detokenizer.Finish();
}

void FuzzText(absl::string_view text) {
  const Tokenizer& tokenizer = TinyTokenizer();
  for (AddedTokens added : {AddedTokens::kIgnore, AddedTokens::kMatch}) {
    const std::vector<TokenId> ids = tokenizer.Encode(text, added);
    SLUICE_CHECK(tokenizer.Decode(ids, false) == text);
    SLUICE_CHECK(DecodeIncrementally(ids, false) == text);
    for (TokenId id : ids) {
      SLUICE_CHECK(tokenizer.IsDefined(id));
      if (added == AddedTokens::kIgnore) SLUICE_CHECK(!tokenizer.IsSpecial(id));
    }
  }
}

// The input as 16-bit ids, sign-extended, so that negative and unknown ones are among them.
void FuzzIds(absl::string_view bytes) {
  std::vector<TokenId> ids;
  for (size_t i = 0; i + 2 <= bytes.size(); i += 2) {
    int16_t id;
    std::memcpy(&id, bytes.data() + i, 2);
    ids.push_back(id);
  }
  for (bool skip_special_tokens : {false, true}) {
    const std::string text = TinyTokenizer().Decode(ids, skip_special_tokens);
    SLUICE_CHECK(IsValidUtf8(text));
    SLUICE_CHECK(DecodeIncrementally(ids, skip_special_tokens) == text);
  }
}

}  // namespace
}  // namespace sluice

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  sluice::FuzzIds(bytes);
  if (sluice::IsValidUtf8(bytes)) sluice::FuzzText(bytes);
  return 0;
}
