// Progress of long work for people: a bar as text, and the terminal's last line that shows it. Any
// thread for the pure part; the terminal belongs to one thread.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

// "[########........] 43 %". `fraction` is taken as within [0, 1].
std::string ProgressBar(double fraction, int width);

// Draws `what`, the bar and `details` over the last line of standard error; at 1 clears it. Nothing
// when that is not a terminal.
void ShowProgress(absl::string_view what, double fraction, absl::string_view details = "");
// For work that ends early: clears that line.
void ClearProgress();

}  // namespace sluice
