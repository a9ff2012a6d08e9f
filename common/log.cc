#include "common/log.h"

#include <poll.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// A pipe that has room takes as much at once (PIPE_BUF), with what stands before the message.
constexpr size_t kMaxMessageBytes = 3500;

bool g_json = false;

std::string JsonEscaped(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out.push_back(' ');
    } else {
      out.push_back(c);
    }
  }
  return out;
}

std::string Cut(absl::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return std::string(text);
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(text.substr(0, end), "...");
}

// What the pattern's %v stands for.
std::string Line(absl::string_view message) {
  if (!g_json) return Cut(message, kMaxMessageBytes);
  // Escaping at most doubles it.
  return absl::StrCat("\"message\":\"", JsonEscaped(Cut(message, kMaxMessageBytes / 2)), "\"");
}

// To standard error, never waiting for who reads it: a collector that stands still must not stop
// the threads of a server.
class StderrSink : public spdlog::sinks::stderr_color_sink_mt {
 public:
  void log(const spdlog::details::log_msg& message) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (num_dropped_ > 0 && HasRoom()) {
      const std::string text = Line(absl::StrCat(
          num_dropped_, " lines were not logged, for nobody read standard error in time"));
      spdlog::details::log_msg note(message.logger_name, spdlog::level::warn,
                                    spdlog::string_view_t(text.data(), text.size()));
      spdlog::sinks::stderr_color_sink_mt::log(note);
      num_dropped_ = 0;
    }
    if (!HasRoom()) {
      ++num_dropped_;
      return;
    }
    spdlog::sinks::stderr_color_sink_mt::log(message);
  }

 private:
  static bool HasRoom() {
    pollfd out = {STDERR_FILENO, POLLOUT, 0};
    return poll(&out, 1, 0) != 0;  // an error ends the write at once
  }

  std::mutex mutex_;
  uint64_t num_dropped_ = 0;
};

std::shared_ptr<spdlog::logger> MakeLogger(const LogOptions& options) {
  auto logger =
      std::make_shared<spdlog::logger>(options.process_name, std::make_shared<StderrSink>());
  logger->set_level(ToSpdlog(options.level));
  logger->flush_on(spdlog::level::info);
  logger->set_pattern(options.json
                          ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","process":"%n",%v})"
                          : "%H:%M:%S.%e %^%L%$ %n: %v");
  return logger;
}

std::shared_ptr<spdlog::logger>& Logger() {
  static auto* logger = new std::shared_ptr<spdlog::logger>(MakeLogger({}));
  return *logger;
}

}  // namespace

void InitLogging(const LogOptions& options) {
  g_json = options.json;
  Logger() = MakeLogger(options);
}

bool LogEnabled(LogLevel level) { return Logger()->should_log(ToSpdlog(level)); }

void LogMessage(LogLevel level, absl::string_view message) {
  const std::string line = Line(message);
  Logger()->log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace sluice
