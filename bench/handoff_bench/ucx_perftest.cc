#include "bench/handoff_bench/ucx_perftest.h"

#include <arpa/inet.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sluice::bench {
namespace {

// A port that was free a moment ago.
int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  const bool ok = bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0 &&
                  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  close(fd);
  return ok ? ntohs(address.sin_port) : 0;
}

// What a shell command prints on standard output.
std::string OutputOf(const std::string& command) {
  std::string output;
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return output;
  char buffer[4096];
  for (size_t got; (got = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.append(buffer, got);
  pclose(pipe);
  return output;
}

}  // namespace

absl::StatusOr<double> UcxPerftestBytesPerSecond(const std::string& tls, uint64_t message_bytes,
                                                 int num_messages) {
  if (OutputOf("command -v ucx_perftest").empty()) {
    return absl::NotFoundError("ucx_perftest is not installed (package ucx-utils)");
  }
  const int port = FreePort();
  // The client dials until the server listens; both end by themselves, or by timeout(1).
  const std::string common =
      absl::StrCat("UCX_LOG_LEVEL=fatal UCX_TLS=", tls, " timeout 60 ucx_perftest -p ", port);
  const std::string test =
      absl::StrCat(" -t ucp_am_bw -s ", message_bytes, " -n ", num_messages, " -w 20 -f -v");
  const std::string output = OutputOf(absl::StrCat(common, " >/dev/null 2>&1 & sleep 0.5; ", common,
                                                   " 127.0.0.1", test, " 2>&1; wait"));
  // The last line of -v: iterations, latencies (3), bandwidth average and overall in MiB/s, ...
  for (absl::string_view line : absl::StrSplit(output, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ',');
    int64_t iterations = 0;
    double mib_per_second = 0;
    if (fields.size() >= 6 && absl::SimpleAtoi(fields[0], &iterations) &&
        absl::SimpleAtod(fields[5], &mib_per_second)) {
      return mib_per_second * 1024 * 1024;
    }
  }
  return absl::InternalError(absl::StrCat("ucx_perftest said: ", output));
}

}  // namespace sluice::bench
