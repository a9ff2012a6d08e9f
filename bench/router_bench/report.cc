#include "bench/router_bench/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice::bench {
namespace {

struct Field {
  const char* name;  // in JSON
  double Figures::*value;
};

constexpr Field kFields[] = {
    {"window_seconds", &Figures::window_seconds},
    {"answers_per_second", &Figures::answers_per_second},
    {"events_per_second", &Figures::events_per_second},
    {"tokens_per_second", &Figures::tokens_per_second},
    {"router_user_cores", &Figures::router_user_cores},
    {"router_system_cores", &Figures::router_system_cores},
    {"round_trip_p50_us", &Figures::round_trip_p50},
    {"round_trip_p99_us", &Figures::round_trip_p99},
    {"token_p50_us", &Figures::token_p50},
    {"token_p90_us", &Figures::token_p90},
    {"token_p99_us", &Figures::token_p99},
    {"direct_p50_us", &Figures::direct_p50},
    {"direct_p99_us", &Figures::direct_p99},
    {"added_p50_us", &Figures::added_p50},
    {"direct_events_per_second", &Figures::direct_events_per_second},
    {"resident_mib", &Figures::resident_mib},
    {"idle_kib_per_stream", &Figures::idle_kib_per_stream},
    {"clock_ghz", &Figures::clock_ghz},
    {"loopback_us", &Figures::loopback_us},
    {"relay_us", &Figures::relay_us},
};

std::string Count(double value) { return value > 0 ? absl::StrFormat("%.0f", value) : "-"; }

// "12345 (11000-13000)": median and range over the runs, or just the one.
std::string WithRange(const Row& row, double (Figures::*read)() const) {
  std::vector<double> values;
  for (const Figures& run : row.runs) values.push_back((run.*read)());
  std::sort(values.begin(), values.end());
  if (values.back() <= 0) return "-";
  std::string text = Count(values[values.size() / 2]);
  if (values.size() > 1) {
    absl::StrAppend(&text, " (", Count(values.front()), "-", Count(values.back()), ")");
  }
  return text;
}

}  // namespace

Figures Median(const std::vector<Figures>& runs) {
  Figures median;
  for (const Field& field : kFields) {
    std::vector<double> values;
    for (const Figures& run : runs) values.push_back(run.*field.value);
    std::sort(values.begin(), values.end());
    median.*field.value = values[values.size() / 2];
  }
  return median;
}

std::string FormatTable(const std::vector<Row>& rows) {
  std::string table = absl::StrFormat(
      "%-10s %7s | %9s %9s %6s | %22s %22s | %8s %8s | %8s %8s %8s %8s %8s | %9s | %7s %7s | %5s "
      "%5s %5s\n",
      "scenario", "clients", "answers/s", "events/s", "cores", "answers/core-s", "events/core-s",
      "answer50", "answer99", "token50", "token99", "direct50", "direct99", "added50", "direct/s",
      "RSS", "idle", "clock", "loop", "relay");
  absl::StrAppend(
      &table, absl::StrFormat("%-10s %7s | %9s %9s %6s | %22s %22s | %8s %8s | %8s %8s %8s %8s "
                              "%8s | %9s | %7s %7s | %5s %5s %5s\n",
                              "", "", "", "", "", "", "", "us", "us", "us", "us", "us", "us", "us",
                              "", "MiB", "KiB", "GHz", "us", "us"));
  for (const Row& row : rows) {
    const Figures f = Median(row.runs);
    absl::StrAppend(
        &table,
        absl::StrFormat(
            "%-10s %7d | %9s %9s %6.2f | %22s %22s | %8s %8s | %8s %8s %8s %8s %8s | %9s | %7.1f "
            "%7s | %5.2f %5.1f %5.1f\n",
            row.scenario, row.num_connections, Count(f.answers_per_second),
            Count(f.events_per_second), f.router_cores(),
            WithRange(row, &Figures::answers_per_core), WithRange(row, &Figures::events_per_core),
            Count(f.round_trip_p50), Count(f.round_trip_p99), Count(f.token_p50),
            Count(f.token_p99), Count(f.direct_p50), Count(f.direct_p99), Count(f.added_p50),
            Count(f.direct_events_per_second), f.resident_mib,
            f.idle_kib_per_stream > 0 ? absl::StrFormat("%.1f", f.idle_kib_per_stream) : "-",
            f.clock_ghz, f.loopback_us, f.relay_us));
  }
  return table;
}

std::string FormatJson(const std::vector<Row>& rows) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (const Figures& run : row.runs) {
      nlohmann::ordered_json fields;
      for (const Field& field : kFields) fields[field.name] = run.*field.value;
      fields["answers_per_core_second"] = run.answers_per_core();
      fields["events_per_core_second"] = run.events_per_core();
      runs.push_back(std::move(fields));
    }
    json.push_back(
        {{"scenario", row.scenario}, {"connections", row.num_connections}, {"runs", runs}});
  }
  return json.dump(2) + "\n";
}

}  // namespace sluice::bench
