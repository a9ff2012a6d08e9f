// sluice status: workers, load, KV blocks by state, transports.
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "cli/block_table.h"
#include "cli/commands.h"
#include "cli/http_probe.h"
#include "cli/server_address.h"
#include "cli/status_table.h"
#include "common/status_macros.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  sluice status
  sluice status --watch
  sluice status --blocks
  sluice status --json | jq '.workers[] | {worker_id, kv_blocks}'
--blocks asks the workers' admin ports, which listen on loopback unless admin_host says otherwise.
PROMPT and OUTPUT TOK/S are speeds while there was work, MB/S while there was something to transfer.)";

struct StatusFlags {
  ServerFlags server;
  bool json = false;
  bool watch = false;
  bool blocks = false;
  double interval_seconds = 1;
};

absl::StatusOr<v1::GetStatusResponse> GetStatus(v1::Generation::Stub* stub,
                                                const std::string& address) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::GetStatusResponse response;
  const grpc::Status status = stub->GetStatus(&context, v1::GetStatusRequest(), &response);
  if (!status.ok()) return ExplainRpcError(status, context, address);
  return response;
}

std::string ToJson(const v1::GetStatusResponse& response) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // It fails only for messages with unknown Any types; there are none here.
  (void)google::protobuf::util::MessageToJsonString(response, &json, options);
  return json + "\n";
}

// Each worker's own account; one that does not answer costs two seconds.
std::string DescribeBlocks(const v1::GetStatusResponse& status, bool as_json) {
  std::vector<WorkerBlocks> workers;
  for (const v1::WorkerStatus& worker : status.workers()) {
    const absl::StatusOr<ProbeAnswer> answer =
        ProbeHttpAt(worker.address(), "/blocks", absl::Seconds(2));
    absl::StatusOr<std::string> json;
    if (!answer.ok()) {
      json = answer.status();
    } else if (answer->http_status != 200) {
      json = absl::UnavailableError(answer->body);
    } else {
      json = answer->body;
    }
    workers.push_back({worker.worker_id(), worker.address(), std::move(json)});
  }
  return as_json ? BlocksToJson(workers) : FormatBlocks(workers);
}

std::string Describe(const v1::GetStatusResponse& response, const StatusFlags& flags) {
  if (flags.blocks) return DescribeBlocks(response, flags.json);
  return flags.json ? ToJson(response) : FormatStatus(response);
}

absl::Status Status(const StatusFlags& flags) {
  SLUICE_ASSIGN_OR_RETURN(const std::string address, ServerAddress(flags.server));
  const std::unique_ptr<v1::Generation::Stub> stub =
      v1::Generation::NewStub(rpc::MakeChannel(address));
  while (true) {
    SLUICE_ASSIGN_OR_RETURN(const v1::GetStatusResponse response, GetStatus(stub.get(), address));
    if (flags.watch && !flags.json && isatty(STDOUT_FILENO)) std::cout << "\x1b[H\x1b[2J";
    std::cout << Describe(response, flags) << std::flush;
    if (!flags.watch) return absl::OkStatus();
    if (!std::cout) return absl::OkStatus();  // whoever read it is gone
    absl::SleepFor(absl::Seconds(flags.interval_seconds));
  }
}

}  // namespace

void AddStatus(CLI::App* app, int* exit_code) {
  CLI::App* const command =
      app->add_subcommand("status", "Workers, load, KV blocks and transports of a cluster");
  auto flags = std::make_shared<StatusFlags>();
  AddServerFlags(command, &flags->server);
  command->add_flag("--blocks", flags->blocks,
                    "Who holds the KV blocks of each worker: request, state, since and until when");
  command->add_flag("--json", flags->json, "Everything there is to say, one object a line");
  command->add_flag("-w,--watch", flags->watch, "Again and again, until Ctrl-C");
  command->add_option("--interval", flags->interval_seconds, "Seconds between two looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->footer(kExamples);
  command->callback([flags, exit_code] {
    const absl::Status status = Status(*flags);
    *exit_code = status.ok() ? 0 : Fail(status);
  });
}

}  // namespace sluice::cli
