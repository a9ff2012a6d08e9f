#include "cli/status_table.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/terminal.h"
#include "cli/text_table.h"

namespace sluice::cli {
namespace {

double ToSeconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
}

TableRow WorkerRow(const v1::WorkerStatus& worker) {
  const v1::KvBlockCounts& kv = worker.kv_blocks();
  return {TerminalSafe(worker.worker_id()),
          TerminalSafe(worker.role()),
          TerminalSafe(worker.state()),
          absl::StrCat(worker.running_requests()),
          absl::StrCat(worker.waiting_requests()),
          absl::StrCat(worker.queued_tokens()),
          absl::StrFormat("%.1f", worker.prompt_tokens_per_second()),
          absl::StrFormat("%.1f", worker.output_tokens_per_second()),
          absl::StrCat(kv.total()),
          absl::StrCat(kv.free()),
          absl::StrCat(kv.cached()),
          absl::StrCat(kv.active()),
          absl::StrCat(kv.receiving()),
          absl::StrCat(kv.sending()),
          absl::StrCat(kv.quarantined()),
          TerminalSafe(absl::StrCat(worker.dtype(), "/", worker.isa())),
          FormatAge(ToSeconds(worker.heartbeat_age())),
          FormatAge(ToSeconds(worker.uptime()))};
}

}  // namespace

std::string FormatStatus(const v1::GetStatusResponse& status) {
  std::string text = absl::StrCat(
      "model ", TerminalSafe(status.model()), ", version ", TerminalSafe(status.version()), ", up ",
      FormatAge(ToSeconds(status.uptime())), ", ", status.requests_running(), " requests running, ",
      status.requests_queued(), " queued\n");
  if (status.workers().empty()) {
    return text + "\nno workers are attached\n";
  }
  std::vector<TableRow> workers = {{"WORKER", "ROLE", "STATE", "RUN", "WAIT", "QUEUED TOK",
                                    "PROMPT TOK/S", "OUTPUT TOK/S", "BLOCKS", "FREE", "CACHED",
                                    "ACTIVE", "RECV", "SEND", "QUAR", "COMPUTE", "BEAT", "UP"}};
  std::vector<TableRow> transports = {{"WORKER", "PEER", "DIRECTION", "TRANSPORT", "MIB", "MB/S"}};
  for (const v1::WorkerStatus& worker : status.workers()) {
    workers.push_back(WorkerRow(worker));
    for (const v1::TransportStatus& transport : worker.transports()) {
      transports.push_back(
          {TerminalSafe(worker.worker_id()), TerminalSafe(transport.peer()),
           TerminalSafe(transport.direction()), TerminalSafe(transport.transport()),
           absl::StrFormat("%.1f", static_cast<double>(transport.bytes()) / (1 << 20)),
           absl::StrFormat("%.1f", transport.bytes_per_second() / 1e6)});
    }
  }
  absl::StrAppend(&text, "\n", FormatTable(workers));
  if (transports.size() > 1) absl::StrAppend(&text, "\n", FormatTable(transports));
  return text;
}

}  // namespace sluice::cli
