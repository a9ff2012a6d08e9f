// Figures of one run. Percentiles are over successful requests (nearest rank); milliseconds. Times
// count from when a request was due: a late one has waited, as its user would have.
#pragma once

#include <string>
#include <vector>

#include "bench/loadgen/runner.h"

namespace sluice::loadgen {

struct Percentiles {
  double p50 = 0, p95 = 0, p99 = 0, mean = 0;
};
Percentiles PercentilesOf(std::vector<double> values);

// A request is good when it succeeded and met both limits; 0 means no limit.
struct Slo {
  double ttft_ms = 0;
  double tpot_ms = 0;
};

struct Summary {
  std::string name;  // what was varied, for example "prompt 512"
  double x = 0;      // the same as a number, for plots
  int requests = 0;
  int failed = 0;
  int rejected = 0;  // of the failed: refused early (429 or 503)
  std::string first_error;
  double duration_seconds = 0;
  Percentiles ttft_ms;
  Percentiles tpot_ms;  // per request: (last - first token) / (tokens - 1)
  Percentiles itl_ms;   // between events
  Percentiles e2e_ms;
  Percentiles refusal_ms;         // sent to refused early: how soon the server says no
  double request_throughput = 0;  // per second
  double output_token_throughput = 0;
  double prompt_token_throughput = 0;
  double goodput = 0;              // good requests per second
  double good_share = 0;           // of all requests
  double cached_share = 0;         // of prompt tokens
  double worst_send_delay_ms = 0;  // open loop only
};

Summary Summarize(std::string name, double x, const RunResult& run, const Slo& slo);

// A table for people, a line for each run as it ends, and what is to be said of them afterwards.
std::string TableHead();
std::string TableRow(const Summary& run);
std::string Remarks(const std::vector<Summary>& runs);
// The same as JSON (an object with `machine` and `runs`).
std::string FormatJson(const std::vector<Summary>& runs, const std::string& title);

}  // namespace sluice::loadgen
