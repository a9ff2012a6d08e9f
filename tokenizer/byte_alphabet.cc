#include "tokenizer/byte_alphabet.h"

#include <cstdint>

#include "common/utf8.h"

namespace sluice {
namespace {

constexpr int kAlphabetEnd = 256 + 68;  // 68 bytes are not printable

constexpr bool IsPrintable(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

std::array<char32_t, 256> MakeAlphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    alphabet[byte] = IsPrintable(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return alphabet;
}

std::array<int16_t, kAlphabetEnd> MakeInverse() {
  std::array<int16_t, kAlphabetEnd> inverse;
  inverse.fill(-1);
  const std::array<char32_t, 256>& alphabet = ByteAlphabet();
  for (int byte = 0; byte < 256; ++byte) inverse[alphabet[byte]] = static_cast<int16_t>(byte);
  return inverse;
}

}  // namespace

const std::array<char32_t, 256>& ByteAlphabet() {
  static const std::array<char32_t, 256> alphabet = MakeAlphabet();
  return alphabet;
}

std::optional<std::string> BytesFromAlphabet(absl::string_view token) {
  static const std::array<int16_t, kAlphabetEnd> inverse = MakeInverse();
  std::string bytes;
  while (!token.empty()) {
    const Utf8Char next = DecodeUtf8Char(token);
    if (!next.valid || next.code_point >= inverse.size() || inverse[next.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(inverse[next.code_point]));
    token.remove_prefix(next.size_bytes);
  }
  return bytes;
}

std::string BytesOfVocabEntry(absl::string_view text) {
  return BytesFromAlphabet(text).value_or(std::string(text));
}

}  // namespace sluice
