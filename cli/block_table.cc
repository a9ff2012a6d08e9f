#include "cli/block_table.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/terminal.h"
#include "cli/text_table.h"

namespace sluice::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string SecondsOrDash(const Json& seconds) {
  return seconds.is_null() ? "-" : FormatAge(seconds.get<double>());
}

// "5.0s without progress" for a transfer, else the request's deadline.
std::string Until(const Json& holder) {
  std::string text;
  if (!holder.at("deadline_in_seconds").is_null()) {
    text = absl::StrCat("deadline in ", SecondsOrDash(holder.at("deadline_in_seconds")));
  }
  if (!holder.at("lease_seconds").is_null()) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", SecondsOrDash(holder.at("lease_seconds")),
                    " without progress");
  }
  return text.empty() ? "its end" : text;
}

// Throws what nlohmann throws for anything but a block report.
std::string FormatReport(const Json& report) {
  const Json& blocks = report.at("blocks");
  const auto count = [&blocks](const char* state) { return blocks.at(state).get<int64_t>(); };
  std::string text = absl::StrFormat(
      "%s (%s): %d blocks: %d free, %d cached, %d active, %d receiving, %d sending, %d "
      "quarantined; %d holders\n",
      TerminalSafe(report.at("worker_id").get<std::string>()),
      TerminalSafe(report.at("role").get<std::string>()), count("total"), count("free"),
      count("cached"), count("active"), count("receiving"), count("sending"), count("quarantined"),
      report.at("num_holders").get<int64_t>());
  std::vector<TableRow> rows = {{"REQUEST", "ATTEMPT", "STATE", "BLOCKS", "HELD", "UNTIL"}};
  for (const Json& holder : report.at("holders")) {
    const bool known = holder.at("known_request").get<bool>();
    const std::string state = TerminalSafe(holder.at("state").get<std::string>());
    rows.push_back({TerminalSafe(holder.at("request_id").get<std::string>()),
                    absl::StrCat(holder.at("attempt").get<uint32_t>()),
                    holder.at("ending").get<bool>() ? absl::StrCat(state, ", ending") : state,
                    absl::StrCat(holder.at("blocks").get<int64_t>()),
                    SecondsOrDash(holder.at("held_seconds")),
                    known ? Until(holder) : "unknown request"});
  }
  if (rows.size() > 1) text += FormatTable(rows);
  const int64_t not_shown =
      report.at("num_holders").get<int64_t>() - static_cast<int64_t>(rows.size()) + 1;
  if (not_shown > 0) absl::StrAppend(&text, "and ", not_shown, " smaller ones\n");
  return text;
}

std::string CannotAsk(const WorkerBlocks& worker, absl::string_view why) {
  return absl::StrCat(TerminalSafe(worker.worker_id), ": cannot ask its admin port ",
                      TerminalSafe(worker.address), ": ", TerminalSafe(why), "\n");
}

}  // namespace

std::string FormatBlocks(const std::vector<WorkerBlocks>& workers) {
  if (workers.empty()) return "no workers are attached\n";
  std::string text;
  for (const WorkerBlocks& worker : workers) {
    if (!text.empty()) text += "\n";
    if (!worker.json.ok()) {
      text += CannotAsk(worker, worker.json.status().message());
      continue;
    }
    try {
      text += FormatReport(Json::parse(*worker.json));
    } catch (const Json::exception&) {
      text += CannotAsk(worker, "the answer is not a block report");
    }
  }
  return text;
}

std::string BlocksToJson(const std::vector<WorkerBlocks>& workers) {
  Json list = Json::array();
  for (const WorkerBlocks& worker : workers) {
    Json report = worker.json.ok() ? Json::parse(*worker.json, nullptr, false) : Json();
    if (!report.is_object()) {
      const std::string error = worker.json.ok() ? "the answer is not a block report"
                                                 : std::string(worker.json.status().message());
      report = {{"worker_id", worker.worker_id}, {"address", worker.address}, {"error", error}};
    }
    list.push_back(std::move(report));
  }
  const Json json = {{"workers", std::move(list)}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace sluice::cli
