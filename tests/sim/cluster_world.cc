#include "tests/sim/cluster_world.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "metrics/metrics.h"

namespace sluice::testing {
namespace {

worker::WorkerMetrics* Metrics() {
  static auto* registry = new MetricsRegistry();
  static auto* metrics = new worker::WorkerMetrics(registry);
  return metrics;
}

// What a router says, as a worker's transport would hand it to the engine thread.
rpc::SequenceAttempt ToRpc(const router::SequenceStart& s) {
  return {s.key.request, s.key.attempt, s.tokens,   s.num_output_tokens,
          s.tenant_salt, s.sampling,    s.time_left};
}
rpc::PrefillOrder ToRpc(const router::SendPrefill& prefill) {
  const router::AttemptKey& key = prefill.sequence.key;
  rpc::PrefillOrder order;
  order.sequence = ToRpc(prefill.sequence);
  order.grant = {key.request,
                 key.attempt,
                 prefill.grant.transfer_id,
                 prefill.grant.incarnation,
                 prefill.grant.cached_tokens,
                 prefill.grant.lease};
  order.kv_address = prefill.decode_kv_address;
  order.decode_worker_id = prefill.decode_worker_id;
  order.fingerprint = prefill.fingerprint;
  return order;
}
void Hand(SimWorker* worker, rpc::SessionId from, router::Action action) {
  if (auto* reserve = std::get_if<router::SendReserve>(&action)) {
    worker->Post([from, sequence = ToRpc(reserve->sequence)](worker::RequestHandler* h) {
      h->OnReserve(from, sequence);
    });
  } else if (auto* run = std::get_if<router::SendRun>(&action)) {
    worker->Post([from, sequence = ToRpc(run->sequence)](worker::RequestHandler* h) {
      h->OnRun(from, sequence);
    });
  } else if (auto* cancel = std::get_if<router::SendCancel>(&action)) {
    rpc::CancelOrder order{cancel->key.request, cancel->key.attempt, cancel->reason};
    worker->Post([from, order](worker::RequestHandler* h) { h->OnCancel(from, order); });
  } else if (auto* prefill = std::get_if<router::SendPrefill>(&action)) {
    worker->Post(
        [from, order = ToRpc(*prefill)](worker::RequestHandler* h) { h->OnPrefill(from, order); });
  }
}

}  // namespace

Cluster::Cluster(uint64_t seed, bool trace)
    : trace_(trace),
      planned_(2 * seed),
      random_(2 * seed + 1),
      network_(seed),
      start_(network_.Now()),
      streams_(&network_, &random_, MakeStreamsWorld()) {
  using router::WorkerRole;
  roles_ = {WorkerRole::kPrefill, WorkerRole::kPrefill, WorkerRole::kDecode, WorkerRole::kDecode};
  if (planned_.Once(0.2)) roles_.push_back(WorkerRole::kBoth);
  for (size_t i = 0; i < roles_.size(); ++i) {
    if (roles_[i] != WorkerRole::kDecode) by_role_.prefill.push_back(static_cast<int>(i));
    if (roles_[i] != WorkerRole::kPrefill) by_role_.decode.push_back(static_cast<int>(i));
  }
  workers_.resize(roles_.size());
  routers_.resize(planned_.Once(0.6) ? 2 : 1);
  step_time_.assign(roles_.size(), absl::Milliseconds(2));
  pool_blocks_ = planned_.Pick(planned_.Once(0.3) ? 9 : 12, 24);
  faults_.eager_bytes = planned_.Once(0.3) ? 4096 : 16;
  faults_.report_crash = planned_.Once(0.5) ? 1 : 0;
  faults_.read_needs_sender = planned_.Once(0.5);
  WriteScript();
}

void Cluster::Run(const Selection& selection) {
  for (int entry : selection) script_[static_cast<size_t>(entry)].install();
  network_.set_faults(faults_);
  for (int r = 0; r < num_routers(); ++r) StartRouter(r);
  for (int i = 0; i < num_workers(); ++i) StartWorker(i);
  Advance(start_ + kFaultTime);
  StopFaults();
  Advance(network_.Now() + kCalmAfter);
  for (int i = 0; i < kNumLateRequests; ++i) {
    const size_t r = i % 2 == 0 ? DrawRequest(&random_) : DrawContinuation();
    Submit(r, random_.UpTo(absl::Seconds(2)));
  }
  const absl::Time deadline = network_.Now() + kSettleTime;
  Advance(network_.Now() + absl::Seconds(3));
  while (network_.Now() < deadline && !WhatIsLeft().empty()) {
    Advance(network_.Now() + absl::Seconds(1));
  }
  if (std::string left = WhatIsLeft(); !left.empty()) Fail(left);
  for (const auto& router : routers_) CountRetries(*router);
}

void Cluster::After(absl::Duration delay, std::function<void()> action) {
  schedule_.emplace(network_.Now() + delay, std::move(action));
}

void Cluster::Advance(absl::Time until) {
  int without_time = 0;
  while (true) {
    const absl::Time now = network_.Now();
    absl::Time next = std::min(until, network_.NextEventTime());
    if (!schedule_.empty()) next = std::min(next, schedule_.begin()->first);
    for (const auto& worker : workers_) {
      if (worker != nullptr) next = std::min(next, worker->WakeTime());
    }
    for (const auto& router : routers_) {
      if (router != nullptr) next = std::min(next, router->WakeTime());
    }
    next = std::max(next, now);
    without_time = next == now ? without_time + 1 : 0;
    if (without_time > 20000) Fail("no progress in time: somebody spins");
    network_.AdvanceTo(next);
    while (!schedule_.empty() && schedule_.begin()->first <= next) {
      std::function<void()> action = std::move(schedule_.begin()->second);
      schedule_.erase(schedule_.begin());
      action();
      ++g_totals.events;
    }
    for (auto& router : routers_) {
      if (router == nullptr || router->WakeTime() > next) continue;
      router->Run();
      ++g_totals.events;
    }
    for (auto& worker : workers_) {
      if (worker == nullptr || worker->WakeTime() > next) continue;
      worker->Run();
      ++g_totals.events;
      if (std::string wrong = worker->CheckIntegrity(); !wrong.empty()) {
        Fail(absl::StrCat(worker->options().name, ": ", wrong));
      }
    }
    if (next >= until) return;
  }
}

StreamsWorld Cluster::MakeStreamsWorld() {
  StreamsWorld world;
  world.after = [this](absl::Duration delay, std::function<void()> action) {
    After(delay, std::move(action));
  };
  world.worker_reads = [this](int i) { return WorkerAt(i) != nullptr && !WorkerAt(i)->paused; };
  world.to_router = [this](int r, router::Event event) {
    if (RouterAt(r) != nullptr) RouterAt(r)->Deliver(std::move(event));
  };
  world.to_worker = [this](int i, router::SessionId session, router::Action action) {
    if (const auto* welcome = std::get_if<router::SendWelcome>(&action)) {
      if (!welcome->error.empty()) Fail(absl::StrCat("refused: ", welcome->error));
      return;
    }
    Hand(WorkerAt(i), rpc::SessionId(session.value), std::move(action));
  };
  world.closed_at_worker = [this](int i, int r, router::SessionId session) {
    SimWorker* worker = WorkerAt(i);
    worker->ForgetStream(session);
    worker->Post([from = rpc::SessionId(session.value)](worker::RequestHandler* h) {
      h->OnSessionLost(from);
    });
    DialLater(i, r, worker->options().incarnation);
  };
  return world;
}

void Cluster::StartWorker(int i) {
  const auto slot = static_cast<size_t>(i);
  SimWorkerOptions options;
  options.name = absl::StrCat(router::WorkerRoleName(roles_[slot]), i);
  options.incarnation = Incarnation(++last_incarnation_);
  options.role = roles_[slot];
  options.num_blocks = pool_blocks_;
  options.step_time = step_time_[slot];
  options.scheduler.max_model_len = kMaxModelLen;
  options.scheduler.max_num_batched_tokens = 128;
  options.scheduler.max_num_seqs = 6;
  options.scheduler.expected_output_tokens = 16;
  options.transfers.lease = absl::Seconds(2);
  options.transfers.target_message_bytes = 4096;
  options.transfers.window_bytes = 8192;
  workers_[slot] =
      std::make_unique<SimWorker>(std::move(options), &network_, Metrics(),
                                  [this](router::SessionId session, router::Event event) {
                                    streams_.SendUp(session, std::move(event));
                                  });
  Trace(workers_[slot]->options().name, " starts");
  for (int r = 0; r < num_routers(); ++r) Dial(i, r, WorkerAt(i)->options().incarnation);
}

void Cluster::DialLater(int i, int r, Incarnation incarnation) {
  After(absl::Milliseconds(50) + random_.UpTo(absl::Milliseconds(200)),
        [this, i, r, incarnation] { Dial(i, r, incarnation); });
}

void Cluster::Dial(int i, int r, Incarnation incarnation) {
  SimWorker* worker = WorkerAt(i);
  if (worker == nullptr || worker->options().incarnation != incarnation) return;
  if (RouterAt(r) == nullptr || worker->paused || streams_.IsCut(i, r)) {
    DialLater(i, r, incarnation);
    return;
  }
  const router::SessionId session = streams_.Open(i, r);
  streams_.SendUp(session, router::WorkerRegistered{session, worker->Info()});
  ReportLoad(i, incarnation, session);
}

void Cluster::ReportLoad(int i, Incarnation incarnation, router::SessionId session) {
  SimWorker* worker = WorkerAt(i);
  if (!streams_.open_at_worker(session) || worker == nullptr ||
      worker->options().incarnation != incarnation) {
    return;
  }
  if (!worker->paused) {
    streams_.SendUp(session, router::LoadReported{session, worker->LoadReport(session)});
  }
  After(kLoadInterval, [=, this] { ReportLoad(i, incarnation, session); });
}

std::string Cluster::WhatIsLeft() const {
  for (size_t r = 0; r < requests_.size(); ++r) {
    if (requests_[r].wanted && !requests_[r].ended) {
      return absl::StrCat("request ", r, " has no end");
    }
  }
  for (const auto& worker : workers_) {
    if (worker == nullptr) return "a worker is away";
    if (std::string held = worker->CheckIdle(); !held.empty()) return held;
  }
  for (const auto& router : routers_) {
    if (router == nullptr) return "a router is away";
    if (std::string held = router->CheckIdle(); !held.empty()) return "a router " + held;
  }
  return "";
}

SimulationProgram ClusterSimulation() {
  SimulationProgram program;
  program.name = "cluster_simulation";
  program.default_seeds = 2500;
  program.make = [](uint64_t seed, bool trace) { return std::make_unique<Cluster>(seed, trace); };
  program.summarize = [] {
    const Totals& t = g_totals;
    std::printf(
        "%d requests completed, %d failed, %d cancelled, %d lost with their router; %llu attempts "
        "planned anew, %llu events\n",
        t.completed, t.failed, t.cancelled, t.lost_with_router,
        static_cast<unsigned long long>(t.retries), static_cast<unsigned long long>(t.events));
    // Faults must not be so hard that nothing is left to check, nor so few that nothing was shown.
    if (t.completed < 10000) return true;
    return t.completed > 2 * t.failed && t.failed > 0 && t.cancelled > 0 && t.retries > 0 &&
           t.lost_with_router > 0;
  };
  return program;
}

}  // namespace sluice::testing
