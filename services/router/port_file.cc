#include "services/router/port_file.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice::router {

absl::Status WritePortFile(const std::string& path, const RouterPorts& ports) {
  const std::string temporary = absl::StrCat(path, ".", getpid());
  {
    std::ofstream file(temporary, std::ios::trunc);
    file << absl::StreamFormat(
        "{\"pid\": %d, \"http_port\": %d, \"grpc_port\": %d, \"fleet_port\": %d, "
        "\"admin_port\": %d}\n",
        getpid(), ports.http, ports.grpc, ports.fleet, ports.admin);
    file.flush();
    if (!file) {
      return absl::InternalError(absl::StrCat("cannot write ", temporary, " (port_file)"));
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::InternalError(
        absl::StrCat("cannot write ", path, " (port_file): ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace sluice::router
