// What a command may write to the user's terminal. Pure, any thread.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace sluice::cli {

// A model's text without the control characters that would move the cursor, change colours or
// answer for the user: all of C0 but line feed and tab, DEL, and C1 become U+FFFD. REQUIRES: valid
// UTF-8.
std::string TerminalSafe(absl::string_view text);

}  // namespace sluice::cli
