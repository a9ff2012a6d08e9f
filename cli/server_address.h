// Which cluster a command talks to. Any thread.
#pragma once

#include <CLI/App.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class ClientContext;
class Status;
}  // namespace grpc

namespace sluice::cli {

struct ServerFlags {
  std::string server;   // host:port of gRPC; "" means the cluster of run_dir
  std::string run_dir;  // "" means the default one
};

// --server and --run-dir.
void AddServerFlags(CLI::App* app, ServerFlags* flags);

// --server, INVALID_ARGUMENT if it is no host:port; else the cluster that runs in --run-dir,
// NOT_FOUND if none does; without either the one in the default folder, else the default port of
// this machine.
absl::StatusOr<std::string> ServerAddress(const ServerFlags& flags);

// An ended RPC's error in words that say what to do: the router's own, or that there is none.
absl::Status ExplainRpcError(const grpc::Status& status, const grpc::ClientContext& context,
                             const std::string& address);

}  // namespace sluice::cli
