#include "cli/terminal.h"

namespace sluice::cli {

std::string TerminalSafe(absl::string_view text) {
  constexpr char kReplacement[] = "\xEF\xBF\xBD";
  std::string safe;
  safe.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const unsigned char next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7F) {
      safe += kReplacement;
    } else if (c == 0xC2 && next >= 0x80 && next < 0xA0) {
      safe += kReplacement;  // U+0080 to U+009F
      ++i;
    } else {
      safe.push_back(text[i]);
    }
  }
  return safe;
}

}  // namespace sluice::cli
