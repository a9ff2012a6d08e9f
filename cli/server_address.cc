#include "cli/server_address.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include "absl/strings/str_cat.h"
#include "cli/run_dir.h"
#include "common/status_macros.h"

namespace sluice::cli {

void AddServerFlags(CLI::App* app, ServerFlags* flags) {
  app->add_option("-s,--server", flags->server,
                  "host:port of a router's gRPC; the cluster of --run-dir, else 127.0.0.1:8001");
  app->add_option("--run-dir", flags->run_dir, "The --run-dir of `sluice up`")
      ->default_str(DefaultRunDir());
}

absl::StatusOr<std::string> ServerAddress(const ServerFlags& flags) {
  if (!flags.server.empty()) return flags.server;
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
  return absl::UnavailableError(
      absl::StrCat("no answer from ", address, " (", message,
                   "); `sluice up` starts a cluster, --server HOST:PORT names another one"));
}

}  // namespace sluice::cli
