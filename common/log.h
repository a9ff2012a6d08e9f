// One line a message on stderr, with level, time and the process's name. Thread-safe.
// Prompts and answers are never logged. The library behind it (spdlog) stays in log.cc.
//
//   SLUICE_LOG(Info) << "listening on " << port;   (an ostream; evaluated only if the level is on)
#pragma once

#include <sstream>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogOptions {
  std::string process_name = "sluice";
  LogLevel level = LogLevel::kInfo;
  bool json = false;  // one JSON object a line, for log collectors
};

// Call once at the start of main; without it, messages go out with the defaults.
void InitLogging(const LogOptions& options);
bool LogEnabled(LogLevel level);
void LogMessage(LogLevel level, absl::string_view message);

class LogLine {
 public:
  explicit LogLine(LogLevel level) : level_(level) {}
  ~LogLine() { LogMessage(level_, stream_.str()); }
  std::ostream& stream() { return stream_; }

 private:
  const LogLevel level_;
  std::ostringstream stream_;
};

}  // namespace sluice

#define SLUICE_LOG(level)                                    \
  if (!::sluice::LogEnabled(::sluice::LogLevel::k##level)) { \
  } else /* NOLINT */                                        \
    ::sluice::LogLine(::sluice::LogLevel::k##level).stream()
