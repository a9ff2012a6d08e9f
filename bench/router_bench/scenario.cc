#include "bench/router_bench/scenario.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/machine_probe.h"
#include "bench/router_bench/fan_out_probe.h"
#include "bench/router_bench/fleet_probe.h"
#include "bench/router_bench/http_load.h"
#include "bench/router_bench/mock_fleet.h"
#include "bench/router_bench/relay_probe.h"
#include "bench/router_bench/router_process.h"
#include "bench/router_bench/token_ledger.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "tokenizer/tokenizer.h"

namespace sluice::bench {
namespace {

constexpr absl::Duration kSettleTimeout = absl::Seconds(60);
constexpr absl::Duration kProbeWindow = absl::Milliseconds(1500);
constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr absl::Duration kTurn = absl::Milliseconds(100);
constexpr absl::Duration kBetweenTurns = absl::Milliseconds(5);  // for what is on its way
constexpr char kServedName[] = "mock";

double Microseconds(std::vector<int64_t>* nanoseconds, double share) {
  if (nanoseconds->empty()) return 0;
  const auto at = static_cast<long>(share * static_cast<double>(nanoseconds->size() - 1));
  std::nth_element(nanoseconds->begin(), nanoseconds->begin() + at, nanoseconds->end());
  return static_cast<double>((*nanoseconds)[static_cast<size_t>(at)]) / 1000;
}

// A router with nothing on it, and who will use it. Members in order of dependence.
struct Setup {
  std::unique_ptr<TokenLedger> ledger;
  std::unique_ptr<RouterProcess> router;
  std::unique_ptr<MockFleet> fleet;
  std::unique_ptr<HttpLoad> load;
  int64_t resident_bytes_before_clients = 0;
};

absl::StatusOr<std::unique_ptr<Setup>> MakeSetup(const BenchTarget& target,
                                                 const Scenario& scenario) {
  auto setup = std::make_unique<Setup>();
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          Tokenizer::Load(target.model_dir));
  if (tokenizer->vocab_size() < 2 * kStreamTokenBase) {
    return absl::InvalidArgumentError("the model's vocabulary is too small to name streams");
  }
  setup->ledger = std::make_unique<TokenLedger>(scenario.num_connections);

  const int files = RaiseFileLimit();
  if (files < scenario.num_connections + 256) {
    return absl::ResourceExhaustedError(absl::StrCat(scenario.name, " needs ",
                                                     scenario.num_connections + 256,
                                                     " open files; the limit is ", files));
  }
  // From seven eighths on the router closes idle connections.
  const std::string places = absl::StrCat(scenario.num_connections * 5 / 4 + 64);
  SLUICE_ASSIGN_OR_RETURN(
      setup->router,
      RouterProcess::Start(
          target.router,
          {"--model", target.model_dir, "--served-model-name", kServedName, "--max-connections",
           places, "--max-running-requests", places, "--max-queued-requests", places}));
  MockFleetOptions fleet;
  fleet.router_address = absl::StrCat("127.0.0.1:", setup->router->fleet_port());
  fleet.model = kServedName;
  fleet.vocab_size = tokenizer->vocab_size();
  fleet.answer_token = tokenizer->Encode("x", AddedTokens::kIgnore).front();
  fleet.num_workers = scenario.num_workers;
  fleet.max_num_seqs = std::max(1, scenario.num_connections / scenario.num_workers);
  if (scenario.tokens_per_second > 0) {
    fleet.step_interval = absl::Seconds(1 / scenario.tokens_per_second);
  }
  SLUICE_ASSIGN_OR_RETURN(setup->fleet, MockFleet::Start(fleet, setup->ledger.get()));
  SLUICE_RETURN_IF_ERROR(setup->router->AwaitReady());
  SLUICE_ASSIGN_OR_RETURN(const RouterProcess::Usage before_clients, setup->router->ReadUsage());
  setup->resident_bytes_before_clients = before_clients.resident_bytes;

  HttpLoadOptions load;
  load.port = setup->router->http_port();
  load.model = kServedName;
  load.num_connections = scenario.num_connections;
  load.max_tokens = scenario.max_tokens;
  load.stream = scenario.stream;
  SLUICE_ASSIGN_OR_RETURN(setup->load, HttpLoad::Connect(load, setup->ledger.get()));
  return setup;
}

absl::Status CheckFailures(const Setup& setup) {
  const HttpLoad::Counts counts = setup.load->counts();
  if (counts.failures == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(counts.failures, " failures, the first: ", counts.first_failure));
}

// Waits until every stream has begun, or, without streams, until answers come.
absl::Status AwaitBegun(const Setup& setup, const Scenario& scenario) {
  const absl::Time give_up_at = MonotonicNow() + kSettleTimeout;
  const bool all = scenario.tokens_per_second > 0;
  while (all ? setup.load->num_begun() < scenario.num_connections
             : setup.load->counts().answers == 0) {
    SLUICE_RETURN_IF_ERROR(CheckFailures(setup));
    if (MonotonicNow() >= give_up_at) {
      return absl::DeadlineExceededError(absl::StrCat(
          scenario.name, ": after ", absl::FormatDuration(kSettleTimeout), " only ",
          setup.load->num_begun(), " of ", scenario.num_connections, " streams had begun"));
    }
    absl::SleepFor(kPoll);
  }
  return absl::OkStatus();
}

// Memory that each stream takes on which nothing happens.
absl::StatusOr<double> IdleKibPerStream(const Setup& setup, const Scenario& scenario) {
  setup.fleet->SetHeld(true);
  setup.load->Start();
  SLUICE_RETURN_IF_ERROR(AwaitBegun(setup, scenario));
  SLUICE_ASSIGN_OR_RETURN(const RouterProcess::Usage after, setup.router->ReadUsage());
  setup.fleet->SetHeld(false);
  return static_cast<double>(after.resident_bytes - setup.resident_bytes_before_clients) / 1024 /
         scenario.num_connections;
}

bool HasRate(const Scenario& scenario) { return scenario.stream && scenario.tokens_per_second > 0; }
bool IsLoneStream(const Scenario& scenario) {
  return HasRate(scenario) && scenario.num_connections == 1;
}

absl::Status MeasureBareConnections(const Scenario& scenario, Figures* figures) {
  RaiseFileLimit();
  FanOutShape shape;
  shape.num_connections = scenario.num_connections;
  shape.num_bursts = scenario.num_workers;
  shape.events_per_second = scenario.tokens_per_second;
  shape.window = kProbeWindow;
  SLUICE_ASSIGN_OR_RETURN(const FanOut probe, MeasureFanOut(shape));
  figures->direct_events_per_second = probe.events_per_second;
  figures->direct_p50 = probe.p50;
  figures->direct_p99 = probe.p99;
  return absl::OkStatus();
}

void Append(std::vector<int64_t> from, std::vector<int64_t>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

// What a window brings.
struct Window {
  absl::Duration length;  // of the router's turns together
  HttpLoad::Samples routed;
  std::vector<int64_t> direct;  // with a probe
};

// The router's tokens, and with a probe the bare stream's in turns, so that both meet the same
// neighbours.
Window Watch(const Setup& setup, const Scenario& scenario, absl::Duration length, FleetProbe* probe,
             const std::function<void(double)>& on_progress) {
  Window window;
  while (window.length < length) {
    on_progress(absl::FDivDuration(window.length, length));
    const absl::Time begin = MonotonicNow();
    setup.load->KeepSamples();
    absl::SleepFor(std::min(length - window.length, kTurn));
    HttpLoad::Samples samples = setup.load->TakeSamples();
    window.length += MonotonicNow() - begin;
    Append(std::move(samples.token), &window.routed.token);
    Append(std::move(samples.round_trip), &window.routed.round_trip);
    if (probe == nullptr) continue;
    setup.fleet->SetHeld(true);
    absl::SleepFor(kBetweenTurns);
    probe->Run(kTurn, absl::Seconds(1 / scenario.tokens_per_second));
    setup.fleet->SetHeld(false);
    absl::SleepFor(kBetweenTurns);
  }
  if (probe != nullptr) window.direct = probe->TakeDelays();
  return window;
}

}  // namespace

const std::vector<Scenario>& Scenarios() {
  static const std::vector<Scenario>* const scenarios = new std::vector<Scenario>{
      {"requests", "small requests, answered at once with one token", 64, 4, false, 1, 0, false},
      {"streamed", "the same as streams of one event", 64, 4, true, 1, 0, false},
      {"events", "streams of 200 tokens/s each, more than the router can pass on", 512, 4, true,
       2000, 200, false},
      {"latency", "one stream of 1,000 tokens/s on an idle router", 1, 1, true, 4000, 1000, false},
      {"streams", "very many streams of 20 tokens/s each", 10'000, 40, true, 2000, 20, true},
  };
  return *scenarios;
}

absl::StatusOr<Figures> RunScenario(const BenchTarget& target, const Scenario& scenario,
                                    const std::function<void(double)>& on_progress) {
  Figures figures;
  figures.clock_ghz = MachineProbe::ClockHz() / 1e9;
  SLUICE_ASSIGN_OR_RETURN(const RelayCost relay, MeasureRelay());
  figures.loopback_us = relay.direct;
  figures.relay_us = relay.added;
  std::unique_ptr<FleetProbe> probe;
  if (IsLoneStream(scenario)) {
    SLUICE_ASSIGN_OR_RETURN(probe, FleetProbe::Start());
  } else if (HasRate(scenario)) {
    SLUICE_RETURN_IF_ERROR(MeasureBareConnections(scenario, &figures));
  }
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Setup> setup, MakeSetup(target, scenario));
  if (scenario.measure_idle) {
    SLUICE_ASSIGN_OR_RETURN(figures.idle_kib_per_stream, IdleKibPerStream(*setup, scenario));
  } else {
    setup->load->Start();
    SLUICE_RETURN_IF_ERROR(AwaitBegun(*setup, scenario));
  }
  absl::SleepFor(target.warm_up);

  SLUICE_ASSIGN_OR_RETURN(const RouterProcess::Usage used_before, setup->router->ReadUsage());
  const HttpLoad::Counts before = setup->load->counts();
  const absl::Time start = MonotonicNow();
  Window window = Watch(*setup, scenario, target.window, probe.get(), on_progress);
  const double seconds = absl::ToDoubleSeconds(MonotonicNow() - start);  // the probe's turns too
  const HttpLoad::Counts after = setup->load->counts();
  SLUICE_ASSIGN_OR_RETURN(const RouterProcess::Usage used, setup->router->ReadUsage());
  SLUICE_RETURN_IF_ERROR(CheckFailures(*setup));

  figures.window_seconds = seconds;
  figures.answers_per_second = static_cast<double>(after.answers - before.answers) / seconds;
  figures.events_per_second = static_cast<double>(after.events - before.events) / seconds;
  figures.tokens_per_second = static_cast<double>(after.tokens - before.tokens) / seconds;
  figures.router_user_cores = (used.user_seconds - used_before.user_seconds) / seconds;
  figures.router_system_cores = (used.system_seconds - used_before.system_seconds) / seconds;
  figures.round_trip_p50 = Microseconds(&window.routed.round_trip, 0.5);
  figures.round_trip_p99 = Microseconds(&window.routed.round_trip, 0.99);
  figures.token_p50 = Microseconds(&window.routed.token, 0.5);
  figures.token_p90 = Microseconds(&window.routed.token, 0.9);
  figures.token_p99 = Microseconds(&window.routed.token, 0.99);
  if (probe != nullptr) {
    figures.direct_p50 = Microseconds(&window.direct, 0.5);
    figures.direct_p99 = Microseconds(&window.direct, 0.99);
  }
  if (figures.direct_p50 > 0) figures.added_p50 = figures.token_p50 - figures.direct_p50;
  figures.resident_mib = static_cast<double>(used.resident_bytes) / (1 << 20);
  return figures;
}

}  // namespace sluice::bench
