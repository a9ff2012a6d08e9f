// Streams an answer to the user: on a terminal thinking is dimmed and control characters are
// replaced; elsewhere thinking goes to `err`, and text as it is to `out`. One thread.
#pragma once

#include <ostream>

#include "absl/strings/string_view.h"

namespace sluice::cli {

class AnswerPrinter {
 public:
  // The streams must outlive this. `dims`: the terminal may be sent colours.
  AnswerPrinter(std::ostream* out, std::ostream* err, bool is_terminal, bool dims);
  // Ends what has begun, so that whatever comes next has its own line and is not dim.
  ~AnswerPrinter();
  AnswerPrinter(const AnswerPrinter&) = delete;
  AnswerPrinter& operator=(const AnswerPrinter&) = delete;

  void Reasoning(absl::string_view text);
  void Text(absl::string_view text);
  // The answer is complete, if only an empty one.
  void End();

 private:
  void EndThinking();

  std::ostream& out_;
  std::ostream& err_;
  const bool is_terminal_;
  const bool dims_;
  bool thinking_ = false;
  bool in_line_ = false;  // of `out`
};

}  // namespace sluice::cli
