// One measurement of the router: a fresh router, a mock fleet and clients, a settled state, a
// window. Main thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::bench {

struct Scenario {
  std::string name;
  std::string what;  // one line, for people
  int num_connections = 64;
  int num_workers = 4;
  bool stream = true;
  int max_tokens = 1;
  double tokens_per_second = 0;  // of each stream; 0: whole answers at once
  bool measure_idle = false;     // also the memory of streams on which nothing happens
};

// The scenarios behind the figures of bench/README.md.
const std::vector<Scenario>& Scenarios();

struct BenchTarget {
  std::string router;     // program
  std::string model_dir;  // of its tokenizer
  absl::Duration warm_up;
  absl::Duration window;
};

struct Figures {
  double window_seconds = 0;
  double answers_per_second = 0;
  double events_per_second = 0;
  double tokens_per_second = 0;
  double router_user_cores = 0;  // CPU seconds of the router's process a second
  double router_system_cores = 0;
  // Microseconds.
  double round_trip_p50 = 0, round_trip_p99 = 0;
  // A token, from the worker's send to its event at the client; and as much without a router, if
  // the scenario's streams have a rate: of a lone stream a bare stream of the fleet protocol, in
  // turns with the router; of many the same bytes at the same times over bare connections, just
  // before.
  double token_p50 = 0, token_p90 = 0, token_p99 = 0;
  double direct_p50 = 0, direct_p99 = 0;
  double added_p50 = 0;  // the difference of the two medians
  double direct_events_per_second = 0;
  double resident_mib = 0;
  double idle_kib_per_stream = 0;
  // The machine just before.
  double clock_ghz = 0;
  double loopback_us = 0;  // one way between two threads, every millisecond
  double relay_us = 0;     // what a thread in between adds that only passes bytes on

  double router_cores() const { return router_user_cores + router_system_cores; }
  double answers_per_core() const {
    return router_cores() > 0 ? answers_per_second / router_cores() : 0;
  }
  double events_per_core() const {
    return router_cores() > 0 ? events_per_second / router_cores() : 0;
  }
};

// `on_progress` hears the share done, 0 to 1. A failed answer is an error.
absl::StatusOr<Figures> RunScenario(const BenchTarget& target, const Scenario& scenario,
                                    const std::function<void(double)>& on_progress);

}  // namespace sluice::bench
