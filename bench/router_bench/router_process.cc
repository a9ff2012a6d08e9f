#include "bench/router_bench/router_process.h"

#include <arpa/inet.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/clock.h"

extern char** environ;

namespace sluice::bench {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(20);
constexpr absl::Duration kStopTimeout = absl::Seconds(5);

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

bool AnswersReady(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  constexpr absl::string_view kRequest =
      "GET /readyz HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n";
  char answer[16] = {};
  const bool answered =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
      send(fd, kRequest.data(), kRequest.size(), MSG_NOSIGNAL) > 0 &&
      recv(fd, answer, sizeof(answer) - 1, MSG_WAITALL) > 0;
  close(fd);
  return answered && absl::StartsWith(answer, "HTTP/1.1 200");
}

}  // namespace

absl::StatusOr<std::unique_ptr<RouterProcess>> RouterProcess::Start(const std::string& program,
                                                                    std::vector<std::string> args) {
  char folder[] = "/tmp/router_bench.XXXXXX";
  if (mkdtemp(folder) == nullptr) return absl::UnavailableError("cannot make a folder in /tmp");
  const std::string port_file = absl::StrCat(folder, "/ports.json");
  args.insert(args.begin(), program);
  for (const char* port : {"--http-port", "--grpc-port", "--fleet-port", "--admin-port"}) {
    args.insert(args.end(), {port, "0"});
  }
  args.insert(args.end(), {"--port-file", port_file, "--log-level", "warning"});
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);

  std::unique_ptr<RouterProcess> router(new RouterProcess());
  const int error =
      posix_spawn(&router->pid_, program.c_str(), nullptr, nullptr, argv.data(), environ);
  absl::Status status;
  if (error != 0) {
    router->pid_ = -1;
    status = absl::NotFoundError(absl::StrCat("cannot run ", program, " (--router)"));
  } else {
    status = router->AwaitPorts(port_file);
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  if (!status.ok()) return status;
  return router;
}

absl::Status RouterProcess::AwaitPorts(const std::string& port_file) {
  const absl::Time give_up_at = MonotonicNow() + kStartTimeout;
  while (MonotonicNow() < give_up_at) {
    const std::string text = ReadFile(port_file);
    if (!text.empty()) {
      const nlohmann::json ports = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      http_port_ = ports.value("http_port", 0);
      fleet_port_ = ports.value("fleet_port", 0);
      return absl::OkStatus();
    }
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return absl::UnavailableError("the router ended while it started; its message is above");
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the router did not listen within ", absl::FormatDuration(kStartTimeout)));
}

RouterProcess::~RouterProcess() {
  if (pid_ < 0) return;
  kill(pid_, SIGTERM);
  const absl::Time kill_at = MonotonicNow() + kStopTimeout;
  while (waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (MonotonicNow() >= kill_at) kill(pid_, SIGKILL);
    absl::SleepFor(absl::Milliseconds(10));
  }
}

absl::Status RouterProcess::AwaitReady() const {
  const absl::Time give_up_at = MonotonicNow() + kStartTimeout;
  while (MonotonicNow() < give_up_at) {
    if (AnswersReady(http_port_)) return absl::OkStatus();
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the router was not ready within ", absl::FormatDuration(kStartTimeout)));
}

absl::StatusOr<RouterProcess::Usage> RouterProcess::ReadUsage() const {
  // proc(5): after the name in parentheses, which may hold spaces, come state and numbers.
  const std::string stat = ReadFile(absl::StrCat("/proc/", pid_, "/stat"));
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return absl::UnavailableError("the router has ended");
  const std::vector<std::string> fields =
      absl::StrSplit(stat.substr(name_end + 1), ' ', absl::SkipEmpty());
  constexpr size_t kUserTicks = 11, kSystemTicks = 12, kResidentPages = 21;
  int64_t user = 0, system = 0, pages = 0;
  if (fields.size() <= kResidentPages || !absl::SimpleAtoi(fields[kUserTicks], &user) ||
      !absl::SimpleAtoi(fields[kSystemTicks], &system) ||
      !absl::SimpleAtoi(fields[kResidentPages], &pages)) {
    return absl::InternalError("/proc/PID/stat reads otherwise than proc(5) says");
  }
  const double ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  return Usage{static_cast<double>(user) / ticks_per_second,
               static_cast<double>(system) / ticks_per_second, pages * sysconf(_SC_PAGESIZE)};
}

int RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<int>(limit.rlim_cur);
}

}  // namespace sluice::bench
