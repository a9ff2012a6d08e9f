#include "bench/loadgen/summary.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_format.h"

namespace sluice::loadgen {
namespace {

double Milliseconds(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

nlohmann::json ToJson(const Percentiles& p) {
  return {{"p50", p.p50}, {"p95", p.p95}, {"p99", p.p99}, {"mean", p.mean}};
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

}  // namespace

Percentiles PercentilesOf(std::vector<double> values) {
  Percentiles result;
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  const auto rank = [&values](double share) {
    const double position = std::ceil(share * static_cast<double>(values.size()));
    return values[static_cast<size_t>(std::max(1.0, position)) - 1];
  };
  result.p50 = rank(0.50);
  result.p95 = rank(0.95);
  result.p99 = rank(0.99);
  for (const double value : values) result.mean += value;
  result.mean /= static_cast<double>(values.size());
  return result;
}

Summary Summarize(std::string name, double x, const RunResult& run, const Slo& slo) {
  Summary summary;
  summary.name = std::move(name);
  summary.x = x;
  summary.requests = static_cast<int>(run.records.size());
  summary.duration_seconds = absl::ToDoubleSeconds(run.duration);
  summary.worst_send_delay_ms = Milliseconds(run.worst_send_delay);
  std::vector<double> ttft, tpot, itl, e2e, refusals;
  double prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  int good = 0;
  for (const RequestRecord& record : run.records) {
    if (!record.status.ok()) {
      ++summary.failed;
      if (absl::IsResourceExhausted(record.status) || absl::IsFailedPrecondition(record.status)) {
        ++summary.rejected;
        refusals.push_back(Milliseconds(record.ended - record.sent));
      }
      if (summary.first_error.empty()) summary.first_error = record.status.ToString();
      continue;
    }
    const double request_ttft = Milliseconds(record.first_token - record.due);
    double request_tpot = 0;
    ttft.push_back(request_ttft);
    e2e.push_back(Milliseconds(record.last_token - record.due));
    if (record.output_tokens > 1) {
      request_tpot =
          Milliseconds(record.last_token - record.first_token) / (record.output_tokens - 1);
      tpot.push_back(request_tpot);
    }
    for (const absl::Duration gap : record.gaps) itl.push_back(Milliseconds(gap));
    prompt_tokens += record.prompt_tokens;
    cached_tokens += record.cached_tokens;
    output_tokens += record.output_tokens;
    const bool meets = (slo.ttft_ms == 0 || request_ttft <= slo.ttft_ms) &&
                       (slo.tpot_ms == 0 || request_tpot <= slo.tpot_ms);
    if (meets) ++good;
  }
  summary.ttft_ms = PercentilesOf(std::move(ttft));
  summary.tpot_ms = PercentilesOf(std::move(tpot));
  summary.itl_ms = PercentilesOf(std::move(itl));
  summary.e2e_ms = PercentilesOf(std::move(e2e));
  summary.refusal_ms = PercentilesOf(std::move(refusals));
  if (summary.duration_seconds > 0) {
    summary.request_throughput = (summary.requests - summary.failed) / summary.duration_seconds;
    summary.output_token_throughput = output_tokens / summary.duration_seconds;
    summary.prompt_token_throughput = prompt_tokens / summary.duration_seconds;
    summary.goodput = good / summary.duration_seconds;
  }
  if (summary.requests > 0) summary.good_share = static_cast<double>(good) / summary.requests;
  if (prompt_tokens > 0) summary.cached_share = cached_tokens / prompt_tokens;
  return summary;
}

std::string TableHead() {
  std::string text =
      absl::StrFormat("%-18s %5s %5s | %8s %8s %8s | %7s %7s | %7s %7s %7s | %8s %9s %7s %7s\n",
                      "run", "reqs", "fail", "TTFT p50", "p95", "p99", "TPOT50", "p99", "ITL p50",
                      "p95", "p99", "out t/s", "prompt t/s", "good/s", "cached");
  text += absl::StrFormat("%-18s %5s %5s | %8s %8s %8s | %7s %7s | %7s %7s %7s |\n", "", "", "",
                          "ms", "ms", "ms", "ms", "ms", "ms", "ms", "ms");
  return text;
}

std::string TableRow(const Summary& run) {
  return absl::StrFormat(
      "%-18s %5d %5d | %8.1f %8.1f %8.1f | %7.2f %7.2f | %7.2f %7.2f %7.2f | %8.0f %9.0f %7.2f "
      "%6.0f%%\n",
      run.name, run.requests, run.failed, run.ttft_ms.p50, run.ttft_ms.p95, run.ttft_ms.p99,
      run.tpot_ms.p50, run.tpot_ms.p99, run.itl_ms.p50, run.itl_ms.p95, run.itl_ms.p99,
      run.output_token_throughput, run.prompt_token_throughput, run.goodput,
      100 * run.cached_share);
}

std::string Remarks(const std::vector<Summary>& runs) {
  std::string text;
  for (const Summary& run : runs) {
    if (run.failed > 0) {
      text += absl::StrFormat(
          "%s: %d failed (%d refused early, after %.1f ms p50 and %.1f ms p99), first: %s\n",
          run.name, run.failed, run.rejected, run.refusal_ms.p50, run.refusal_ms.p99,
          run.first_error);
    }
    if (run.worst_send_delay_ms > 100) {
      text += absl::StrFormat(
          "%s: requests were sent up to %.0f ms late, which their latencies hold; raise "
          "--concurrency "
          "to keep the arrival times\n",
          run.name, run.worst_send_delay_ms);
    }
  }
  return text;
}

std::string FormatJson(const std::vector<Summary>& runs, const std::string& title) {
  utsname machine{};
  uname(&machine);
  nlohmann::json json = {{"title", title},
                         {"machine",
                          {{"processor", ProcessorName()},
                           {"cores", std::thread::hardware_concurrency()},
                           {"kernel", machine.release}}},
                         {"runs", nlohmann::json::array()}};
  for (const Summary& run : runs) {
    json["runs"].push_back({{"name", run.name},
                            {"x", run.x},
                            {"requests", run.requests},
                            {"failed", run.failed},
                            {"rejected", run.rejected},
                            {"duration_seconds", run.duration_seconds},
                            {"ttft_ms", ToJson(run.ttft_ms)},
                            {"tpot_ms", ToJson(run.tpot_ms)},
                            {"itl_ms", ToJson(run.itl_ms)},
                            {"e2e_ms", ToJson(run.e2e_ms)},
                            {"refusal_ms", ToJson(run.refusal_ms)},
                            {"worst_send_delay_ms", run.worst_send_delay_ms},
                            {"requests_per_second", run.request_throughput},
                            {"output_tokens_per_second", run.output_token_throughput},
                            {"prompt_tokens_per_second", run.prompt_token_throughput},
                            {"goodput_per_second", run.goodput},
                            {"good_share", run.good_share},
                            {"cached_share", run.cached_share}});
  }
  return json.dump(2) + "\n";
}

}  // namespace sluice::loadgen
