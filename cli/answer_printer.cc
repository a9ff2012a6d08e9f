#include "cli/answer_printer.h"

#include "cli/terminal.h"

namespace sluice::cli {

AnswerPrinter::AnswerPrinter(std::ostream* out, std::ostream* err, bool is_terminal, bool dims)
    : out_(*out), err_(*err), is_terminal_(is_terminal), dims_(dims) {}

AnswerPrinter::~AnswerPrinter() {
  EndThinking();
  if (in_line_) End();
}

void AnswerPrinter::Reasoning(absl::string_view text) {
  if (!is_terminal_) {
    err_ << text << std::flush;
    thinking_ = true;
    return;
  }
  if (!thinking_ && dims_) out_ << "\x1b[2m";
  thinking_ = true;
  out_ << TerminalSafe(text) << std::flush;
}

void AnswerPrinter::Text(absl::string_view text) {
  EndThinking();
  in_line_ = true;
  if (is_terminal_) {
    out_ << TerminalSafe(text) << std::flush;
  } else {
    out_ << text << std::flush;
  }
}

void AnswerPrinter::End() {
  EndThinking();
  in_line_ = false;
  out_ << std::endl;
}

void AnswerPrinter::EndThinking() {
  if (!thinking_) return;
  thinking_ = false;
  if (!is_terminal_) {
    err_ << std::endl;
  } else {
    out_ << (dims_ ? "\x1b[0m" : "") << "\n\n" << std::flush;
  }
}

}  // namespace sluice::cli
