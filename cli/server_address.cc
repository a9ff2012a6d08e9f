#include "cli/server_address.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/run_dir.h"
#include "common/host_port.h"
#include "common/status_macros.h"

namespace sluice::cli {
namespace {

// gRPC takes much as a name, dials port 443 of it and says that it cannot be resolved.
absl::Status CheckServer(const std::string& server) {
  for (const char* scheme : {"dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:"}) {
    if (absl::StartsWith(server, scheme)) return absl::OkStatus();
  }
  if (SplitHostPort(server).has_value() && !absl::StrContains(server, "/")) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--server ", server, " is not host:port of a router's gRPC, such as 127.0.0.1:8001"));
}

}  // namespace

void AddServerFlags(CLI::App* app, ServerFlags* flags) {
  app->add_option("-s,--server", flags->server,
                  "host:port of a router's gRPC; the cluster of --run-dir, else 127.0.0.1:8001");
  app->add_option("--run-dir", flags->run_dir, "The --run-dir of `sluice up`")
      ->default_str(DefaultRunDir());
}

absl::StatusOr<std::string> ServerAddress(const ServerFlags& flags) {
  if (!flags.server.empty()) {
    SLUICE_RETURN_IF_ERROR(CheckServer(flags.server));
    return flags.server;
  }
  const bool is_named = !flags.run_dir.empty();
  const absl::StatusOr<ClusterInfo> info =
      ReadClusterInfo(is_named ? flags.run_dir : DefaultRunDir());
  if (info.ok() && !info->grpc_address.empty()) return info->grpc_address;
  if (!is_named) return "127.0.0.1:8001";
  SLUICE_RETURN_IF_ERROR(info.status());
  return absl::UnavailableError(absl::StrCat("the cluster in ", flags.run_dir, " still starts"));
}

absl::Status ExplainRpcError(const grpc::Status& status, const grpc::ClientContext& context,
                             const std::string& address) {
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string message = status.error_message();
  const bool of_router = context.GetServerTrailingMetadata().count("sluice-error-code") > 0;
  if (code != absl::StatusCode::kUnavailable || of_router) return absl::Status(code, message);
  if (absl::StrContains(message, "http1.x server")) {  // gRPC's words for any HTTP/1 port
    return absl::InvalidArgumentError(absl::StrCat(
        address, " speaks HTTP/1, not gRPC: --server takes the router's gRPC port (8001 unless ",
        "--grpc-port says otherwise)"));
  }
  return absl::UnavailableError(
      absl::StrCat("no answer from ", address, " (", message,
                   "); `sluice up` starts a cluster, --server HOST:PORT names another one"));
}

}  // namespace sluice::cli
