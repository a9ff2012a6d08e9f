#include "common/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice {
namespace {

constexpr int kBarWidth = 32;

bool ErrorsGoToTerminal() {
  static const bool is_terminal = isatty(STDERR_FILENO) == 1;
  return is_terminal;
}

void Draw(absl::string_view text) {
  if (ErrorsGoToTerminal()) std::cerr << text << std::flush;
}

}  // namespace

std::string ProgressBar(double fraction, int width) {
  const double share = fraction > 0 ? std::min(fraction, 1.0) : 0.0;
  const int filled = static_cast<int>(share * width);
  return absl::StrFormat("[%s%s] %d %%", std::string(static_cast<size_t>(filled), '#'),
                         std::string(static_cast<size_t>(width - filled), '.'),
                         static_cast<int>(share * 100));
}

void ShowProgress(absl::string_view what, double fraction, absl::string_view details) {
  if (fraction >= 1) return ClearProgress();
  Draw(absl::StrCat("\r", what, " ", ProgressBar(fraction, kBarWidth), details.empty() ? "" : "  ",
                    details, "\x1b[K"));
}

void ClearProgress() { Draw("\r\x1b[K"); }

}  // namespace sluice
