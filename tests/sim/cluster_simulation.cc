// A whole cluster in virtual time: the real router core, role handlers, engines (over FakeModel)
// and transfer agents, with a faulty network under the KV transfers and under the fleet's streams.
//   cluster_simulation [--seeds N] [--first N]   many seeds, one summary line
//   cluster_simulation --seed N                  one seed, with a trace
// Faults of a seed: workers crash, pause and are slow; streams break, are cut one way and come
// back; KV messages are lost, doubled, delayed, damaged; clients leave.
//
// Checked after every event: each token of a request comes once, in order, and is the one an
// undisturbed run gives (FakeModel's logits come from the bytes in the KV blocks, so a foreign byte
// gives another token); a request ends once; the block states of each worker sum to its pool, and
// the engine's books agree. When the faults have stopped: every request has ended, new ones are all
// served, and no worker holds anything for anybody.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "metrics/metrics.h"
#include "services/router/core/router_core.h"
#include "tests/sim/sim_worker.h"

namespace sluice::testing {
namespace {

constexpr int kMaxModelLen = 512;
constexpr int kNumRequests = 10;
constexpr int kNumLateRequests = 4;
constexpr absl::Duration kFaultTime = absl::Seconds(6);
constexpr absl::Duration kSettleTime = absl::Seconds(90);
constexpr absl::Duration kLoadInterval = absl::Milliseconds(200);

uint64_t g_seed = 0;
bool g_trace = false;

struct Totals {
  int completed = 0, failed = 0, cancelled = 0;
  uint64_t retries = 0, events = 0;
};

// One stream of a worker to the router. Messages keep their order; a cut direction delivers nothing
// until healed.
struct Stream {
  router::SessionId session;
  size_t worker = 0;
  Incarnation incarnation;
  bool router_open = true, worker_open = true;
  bool up_cut = false, down_cut = false;
  absl::Time last_up, last_down;
  std::deque<std::pair<absl::Time, router::Event>> up;
  std::deque<std::pair<absl::Time, router::Action>> down;
};

struct Request {
  Answer expected;
  size_t num_emitted = 0;
  bool submitted = false, cancelled = false, ended = false, must_complete = false;
};

class Cluster {
 public:
  Cluster(uint64_t seed, worker::WorkerMetrics* metrics, Totals* totals)
      : random_(seed * 0x9e3779b97f4a7c15u + 1),
        network_(seed),
        start_(network_.Now()),
        metrics_(metrics),
        totals_(totals),
        core_(Options()) {
    using router::WorkerRole;
    roles_ = {WorkerRole::kPrefill, WorkerRole::kPrefill, WorkerRole::kDecode, WorkerRole::kDecode};
    if (Chance(0.2)) roles_.push_back(WorkerRole::kBoth);
    workers_.resize(roles_.size());
    step_time_.assign(roles_.size(), absl::Milliseconds(2));
    pool_blocks_ = Pick(12, 24);
    for (size_t i = 0; i < roles_.size(); ++i) StartWorker(i);
  }

  void Run() {
    const bool faults = Chance(0.9);
    if (faults) ChooseFaults();
    for (int i = 0; i < kNumRequests; ++i) {
      // Not before the workers of a calm seed have registered.
      AddRequest(/*must_complete=*/!faults,
                 absl::Milliseconds(500) + RandomDelay(absl::Seconds(5)));
    }
    Advance(start_ + kFaultTime);
    StopFaults();
    // Every worker is back and every stale session forgotten: from here on all is served.
    Advance(network_.Now() + absl::Seconds(10));
    for (int i = 0; i < kNumLateRequests; ++i) {
      AddRequest(/*must_complete=*/true, RandomDelay(absl::Seconds(2)));
    }
    const absl::Time deadline = network_.Now() + kSettleTime;
    Advance(network_.Now() + absl::Seconds(3));
    while (network_.Now() < deadline && !WhatIsLeft().empty()) {
      Advance(network_.Now() + absl::Seconds(1));
    }
    if (std::string left = WhatIsLeft(); !left.empty()) Fail(left);
    for (const auto& by_reason : core_.counters().retries) {
      for (uint64_t count : by_reason) totals_->retries += count;
    }
  }

 private:
  // --- chance and time ---
  int Pick(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(double p) { return static_cast<double>(random_() >> 11) * 0x1.0p-53 < p; }
  absl::Duration RandomDelay(absl::Duration max) { return max * (Pick(0, 1000000) / 1e6); }
  void After(absl::Duration delay, std::function<void()> action) {
    schedule_.emplace(network_.Now() + delay, std::move(action));
  }
  double Seconds() const { return absl::ToDoubleSeconds(network_.Now() - start_); }
  template <typename... Args>
  void Trace(const Args&... args) const {
    if (g_trace) std::printf("%10.6f %s\n", Seconds(), absl::StrCat(args...).c_str());
  }
  [[noreturn]] void Fail(const std::string& what) const {
    const auto seed = static_cast<unsigned long long>(g_seed);
    std::printf("FAILED seed %llu at %.6f s: %s\nreplay: cluster_simulation --seed %llu\n", seed,
                Seconds(), what.c_str(), seed);
    std::exit(1);
  }

  void Advance(absl::Time until) {
    int without_time = 0;
    while (true) {
      const absl::Time now = network_.Now();
      absl::Time next = std::min({until, network_.NextEventTime(), core_.NextTimer(now)});
      if (!schedule_.empty()) next = std::min(next, schedule_.begin()->first);
      for (const auto& worker : workers_) {
        if (worker != nullptr) next = std::min(next, worker->WakeTime());
      }
      next = std::max(next, now);
      without_time = next == now ? without_time + 1 : 0;
      if (without_time > 20000) Fail("no progress in time: somebody spins");
      network_.AdvanceTo(next);
      while (!schedule_.empty() && schedule_.begin()->first <= next) {
        std::function<void()> action = std::move(schedule_.begin()->second);
        schedule_.erase(schedule_.begin());
        action();
        ++totals_->events;
      }
      if (core_.NextTimer(next) <= next) Play(router::Tick{});
      for (auto& worker : workers_) {
        if (worker == nullptr || worker->WakeTime() > next) continue;
        worker->Run();
        ++totals_->events;
        std::string wrong = worker->CheckIntegrity();
        if (!wrong.empty()) Fail(absl::StrCat(worker->options().name, ": ", wrong));
      }
      if (next >= until) return;
    }
  }

  // --- workers and their streams ---
  void StartWorker(size_t i) {
    SimWorkerOptions options;
    options.name = absl::StrCat(router::WorkerRoleName(roles_[i]), i);
    options.incarnation = Incarnation(++last_incarnation_);
    options.role = roles_[i];
    options.num_blocks = pool_blocks_;
    options.step_time = step_time_[i];
    options.scheduler.max_model_len = kMaxModelLen;
    options.scheduler.max_num_batched_tokens = 128;
    options.scheduler.max_num_seqs = 6;
    options.scheduler.expected_output_tokens = 16;
    options.transfers.lease = absl::Seconds(2);
    options.transfers.target_message_bytes = 4096;
    options.transfers.window_bytes = 8192;
    workers_[i] =
        std::make_unique<SimWorker>(std::move(options), &network_, metrics_,
                                    [this](router::SessionId session, router::Event event) {
                                      SendUp(session, std::move(event));
                                    });
    Trace(workers_[i]->options().name, " starts");
    Dial(i);
  }
  void Crash(size_t i) {
    if (workers_[i] == nullptr) return;
    Trace(workers_[i]->options().name, " crashes");
    const Incarnation old = workers_[i]->options().incarnation;
    workers_[i].reset();
    const bool silent = Chance(0.3);  // the machine is gone: only silence tells the router
    for (auto& [session, stream] : streams_) {
      if (stream.incarnation != old) continue;
      stream.worker_open = false;
      if (!silent) LeaveRouter(session, "killed");
    }
    After(RandomDelay(absl::Milliseconds(500)), [this, i] { StartWorker(i); });
  }
  void SetPaused(size_t i, bool paused) {
    if (workers_[i] == nullptr || workers_[i]->paused == paused) return;
    Trace(workers_[i]->options().name, paused ? " pauses" : " resumes");
    workers_[i]->paused = paused;
    network_.SetPaused(workers_[i]->channel(), paused);
    if (!paused) PumpAll();
  }
  SimWorker* WorkerOf(const Stream& stream) const {
    SimWorker* worker = workers_[stream.worker].get();
    return worker != nullptr && worker->options().incarnation == stream.incarnation ? worker
                                                                                    : nullptr;
  }

  void Dial(size_t i) {
    SimWorker* worker = workers_[i].get();
    Stream stream;
    stream.session = router::SessionId(++last_session_);
    stream.worker = i;
    stream.incarnation = worker->options().incarnation;
    stream.last_up = stream.last_down = network_.Now();
    const router::SessionId session = stream.session;
    streams_.emplace(session, std::move(stream));
    SendUp(session, router::WorkerRegistered{session, worker->Info()});
    ReportLoad(session, /*first=*/true);
  }
  void ReportLoad(router::SessionId session, bool first) {
    const Stream& stream = streams_.at(session);
    SimWorker* worker = WorkerOf(stream);
    if (!stream.worker_open || worker == nullptr) return;
    if (!worker->paused) {
      SendUp(session, router::LoadReported{session, worker->LoadReport(first)});
      first = false;
    }
    After(kLoadInterval, [this, session, first] { ReportLoad(session, first); });
  }
  void SendUp(router::SessionId session, router::Event event) {
    auto it = streams_.find(session);
    if (it == streams_.end() || !it->second.worker_open) return;
    Stream& stream = it->second;
    stream.last_up = std::max(stream.last_up, network_.Now() + StreamDelay());
    stream.up.emplace_back(stream.last_up, std::move(event));
    After(stream.last_up - network_.Now(), [this, session] { Pump(session); });
  }
  void SendDown(router::SessionId session, router::Action action) {
    auto it = streams_.find(session);
    if (it == streams_.end() || !it->second.router_open) return;
    Stream& stream = it->second;
    stream.last_down = std::max(stream.last_down, network_.Now() + StreamDelay());
    stream.down.emplace_back(stream.last_down, std::move(action));
    After(stream.last_down - network_.Now(), [this, session] { Pump(session); });
  }
  absl::Duration StreamDelay() {
    return absl::Microseconds(100) +
           RandomDelay(Chance(slow_streams_) ? absl::Milliseconds(300) : absl::Milliseconds(2));
  }
  void PumpAll() {
    std::vector<router::SessionId> sessions;
    for (const auto& [session, stream] : streams_) sessions.push_back(session);
    for (router::SessionId session : sessions) Pump(session);
  }
  void Pump(router::SessionId session) {
    Stream& stream = streams_.at(session);  // std::map: Play may add streams, none is erased
    const absl::Time now = network_.Now();
    while (!stream.up_cut && !stream.up.empty() && stream.up.front().first <= now) {
      router::Event event = std::move(stream.up.front().second);
      stream.up.pop_front();
      if (stream.router_open) Play(std::move(event));
    }
    SimWorker* worker = WorkerOf(stream);
    if (worker == nullptr) stream.down.clear();
    while (!stream.down_cut && worker != nullptr && !worker->paused && !stream.down.empty() &&
           stream.down.front().first <= now) {
      router::Action action = std::move(stream.down.front().second);
      stream.down.pop_front();
      if (stream.worker_open) Receive(worker, session, std::move(action));
    }
  }
  static rpc::SequenceAttempt ToRpc(const router::SequenceStart& s) {
    return {s.key.request, s.key.attempt, s.tokens,   s.num_output_tokens,
            s.tenant_salt, s.sampling,    s.time_left};
  }
  void Receive(SimWorker* worker, router::SessionId session, router::Action action) {
    const rpc::SessionId from(session.value);
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
      rpc::PrefillOrder order;
      const router::AttemptKey& key = prefill->sequence.key;
      order.sequence = ToRpc(prefill->sequence);
      order.grant = {key.request,
                     key.attempt,
                     prefill->grant.transfer_id,
                     prefill->grant.incarnation,
                     prefill->grant.cached_tokens,
                     prefill->grant.lease};
      order.kv_address = prefill->decode_kv_address;
      order.decode_worker_id = prefill->decode_worker_id;
      order.fingerprint = prefill->fingerprint;
      worker->Post([from, order](worker::RequestHandler* h) { h->OnPrefill(from, order); });
    }
  }
  // The router's end closes, after what is on its way or instead of it.
  void LeaveRouter(router::SessionId session, const std::string& why) {
    Stream& stream = streams_.at(session);
    if (Chance(0.5)) stream.up.clear();
    stream.up_cut = false;
    stream.last_up = std::max(stream.last_up, network_.Now() + StreamDelay());
    stream.up.emplace_back(stream.last_up, router::WorkerLeft{session, why});
    After(stream.last_up - network_.Now(), [this, session] {
      Pump(session);
      streams_.at(session).router_open = false;
    });
  }
  // The worker's end closes: it drops what came over the stream, and dials again.
  void LeaveWorker(router::SessionId session, absl::Duration delay) {
    After(delay, [this, session] {
      Stream& stream = streams_.at(session);
      SimWorker* worker = WorkerOf(stream);
      if (worker == nullptr || !stream.worker_open) return;
      stream.worker_open = false;
      worker->Post([from = rpc::SessionId(session.value)](worker::RequestHandler* h) {
        h->OnSessionLost(from);
      });
      After(RandomDelay(absl::Milliseconds(200)), [this, session] {
        const Stream& lost = streams_.at(session);
        if (WorkerOf(lost) != nullptr) Dial(lost.worker);
      });
    });
  }
  Stream* RandomStream() {
    std::vector<Stream*> open;
    for (auto& [session, stream] : streams_) {
      if (stream.worker_open && stream.router_open) open.push_back(&stream);
    }
    return open.empty() ? nullptr : open[static_cast<size_t>(Pick(0, open.size() - 1))];
  }

  // --- faults ---
  void Times(double chance, std::function<void()> fault) {
    if (!Chance(chance)) return;
    for (int n = Pick(1, 4); n > 0; --n) After(RandomDelay(kFaultTime), fault);
  }
  size_t RandomWorker() { return static_cast<size_t>(Pick(0, workers_.size() - 1)); }
  void ChooseFaults() {
    SimFaults faults;
    faults.eager_bytes = Chance(0.3) ? 4096 : 16;
    auto maybe = [this](double max) { return Chance(0.4) ? max * (Pick(0, 1000) / 1e3) : 0; };
    faults.slow = maybe(0.2);
    faults.drop = maybe(0.2);
    faults.duplicate = maybe(0.3);
    faults.damage_header = maybe(0.1);
    faults.damage_payload = maybe(0.1);
    faults.fail_receive = maybe(0.2);
    faults.hang_receive = maybe(0.02);
    faults.report_crash = Chance(0.5) ? 1 : 0;
    faults.read_needs_sender = Chance(0.5);
    network_.set_faults(faults);
    slow_streams_ = maybe(0.3);
    for (absl::Duration& step : step_time_) {
      if (Chance(0.15)) step = absl::Milliseconds(60);
    }
    Times(0.5, [this] { Crash(RandomWorker()); });
    Times(0.4, [this] {
      const size_t i = RandomWorker();
      SetPaused(i, true);
      After(RandomDelay(absl::Seconds(3)), [this, i] { SetPaused(i, false); });
    });
    Times(0.4, [this] {
      Stream* stream = RandomStream();
      if (stream == nullptr) return;
      Trace("stream ", stream->session.value, " breaks");
      LeaveRouter(stream->session, "reset");
      LeaveWorker(stream->session, RandomDelay(absl::Seconds(1)));
    });
    Times(0.4, [this] {
      Stream* stream = RandomStream();
      if (stream == nullptr) return;
      (Chance(0.5) ? stream->up_cut : stream->down_cut) = true;
      Trace("stream ", stream->session.value, stream->up_cut ? " cut up" : " cut down");
    });
    Times(0.4, [this] {
      const size_t from = RandomWorker(), to = RandomWorker();
      if (workers_[from] == nullptr || workers_[to] == nullptr) return;
      Trace("KV cut ", workers_[from]->options().name, " -> ", workers_[to]->options().name);
      network_.Cut(workers_[from]->channel(), workers_[to]->channel());
    });
    Times(0.3, [this] { Heal(); });
    Times(0.4, [this] {
      const size_t r = static_cast<size_t>(Pick(0, requests_.size() - 1));
      if (!requests_[r].submitted || requests_[r].ended) return;
      Trace("client of ", r, " leaves");
      requests_[r].cancelled = true;
      Play(router::RequestCancelled{IdOf(r)});
    });
  }
  void Heal() {
    network_.HealAllLinks();
    for (auto& [session, stream] : streams_) stream.up_cut = stream.down_cut = false;
    PumpAll();
  }
  void StopFaults() {
    Trace("faults stop");
    network_.set_faults(SimFaults());
    slow_streams_ = 0;
    Heal();
    for (size_t i = 0; i < workers_.size(); ++i) SetPaused(i, false);
  }

  // --- router ---
  static router::CoreOptions Options() {
    router::CoreOptions options;
    options.request_timeout = absl::Seconds(60);
    options.capacity_timeout = absl::Seconds(20);
    return options;
  }
  static RequestId IdOf(size_t r) {
    RequestId id;
    id.bytes[0] = static_cast<uint8_t>(r + 1);
    return id;
  }
  void AddRequest(bool must_complete, absl::Duration delay) {
    const size_t r = requests_.size();
    router::GenerationSpec spec;
    spec.id = IdOf(r);
    // Some prompts begin alike: cached prefixes on both sides.
    spec.prompt = MakeTokens(Chance(0.4) ? 7 : random_(), Pick(1, 300));
    spec.sampling.seed = random_();
    spec.sampling.temperature = Chance(0.5) ? 0 : 1;
    spec.sampling.max_tokens = Pick(1, 24);
    if (Chance(0.5)) spec.sampling.stop_token_ids = {3};
    SequenceInput input;
    input.tokens = spec.prompt;
    input.sampling = spec.sampling;
    Request request;
    request.expected = OracleAnswer(input, kMaxModelLen);
    request.must_complete = must_complete;
    requests_.push_back(std::move(request));
    After(delay, [this, r, spec = std::move(spec)]() mutable {
      Trace("request ", r, ": ", spec.prompt.size(), " tokens");
      requests_[r].submitted = true;
      Play(router::RequestSubmitted{std::move(spec)});
    });
  }
  void Play(router::Event event) {
    for (router::Action& action : core_.Step(std::move(event), network_.Now())) {
      if (const auto* emitted = std::get_if<router::EmitTokens>(&action)) {
        OnTokens(*emitted);
      } else if (const auto* ended = std::get_if<router::EndRequest>(&action)) {
        OnEnd(*ended);
      } else if (const auto* close = std::get_if<router::CloseSession>(&action)) {
        Trace("router closes stream ", close->session.value, ": ", close->reason);
        Stream& stream = streams_.at(close->session);
        stream.router_open = false;
        LeaveWorker(close->session, StreamDelay());
      } else {
        std::visit(
            [this, &action](const auto& a) {
              if constexpr (requires { a.to; }) SendDown(a.to, std::move(action));
            },
            action);
      }
    }
  }
  void OnTokens(const router::EmitTokens& emitted) {
    const size_t r = emitted.id.bytes[0] - 1u;
    Request& request = requests_.at(r);
    if (request.ended) Fail(absl::StrCat("request ", r, " gets tokens after its end"));
    for (const SampledToken& token : emitted.tokens) {
      const auto& expected = request.expected.tokens;
      if (request.num_emitted >= expected.size() ||
          expected[request.num_emitted].token != token.token) {
        Fail(absl::StrCat("request ", r, ": token ", request.num_emitted, " is ", token.token,
                          ", undisturbed: ", ToString(request.expected)));
      }
      ++request.num_emitted;
    }
  }
  void OnEnd(const router::EndRequest& ended) {
    const size_t r = ended.id.bytes[0] - 1u;
    Request& request = requests_.at(r);
    Trace("request ", r, " ends after ", request.num_emitted,
          " tokens: ", static_cast<int>(ended.result.end), " ", ended.result.status.ToString());
    if (std::exchange(request.ended, true)) Fail(absl::StrCat("request ", r, " ends twice"));
    switch (ended.result.end) {
      case router::GenerationEnd::kStop:
      case router::GenerationEnd::kLength:
        if (request.num_emitted != request.expected.tokens.size() ||
            (ended.result.end == router::GenerationEnd::kStop) !=
                (request.expected.reason == EndReason::kStop)) {
          Fail(absl::StrCat("request ", r, " ends unlike the undisturbed run"));
        }
        ++totals_->completed;
        return;
      case router::GenerationEnd::kCancelled:
        if (!request.cancelled) Fail(absl::StrCat("request ", r, " was cancelled by nobody"));
        ++totals_->cancelled;
        return;
      case router::GenerationEnd::kFailed:
        if (request.must_complete) {
          Fail(absl::StrCat("request ", r,
                            " failed without a fault: ", ended.result.status.ToString()));
        }
        ++totals_->failed;
        return;
    }
  }
  std::string WhatIsLeft() const {
    for (size_t r = 0; r < requests_.size(); ++r) {
      if (!requests_[r].ended) return absl::StrCat("request ", r, " has no end");
    }
    for (const auto& worker : workers_) {
      if (worker == nullptr) return "a worker is away";
      if (std::string held = worker->CheckIdle(); !held.empty()) return held;
    }
    return "";
  }

  std::mt19937_64 random_;
  SimNetwork network_;
  const absl::Time start_;
  worker::WorkerMetrics* const metrics_;
  Totals* const totals_;
  router::RouterCore core_;
  std::vector<router::WorkerRole> roles_;
  std::vector<std::unique_ptr<SimWorker>> workers_;  // null while a process is down
  std::vector<absl::Duration> step_time_;
  std::map<router::SessionId, Stream> streams_;
  std::vector<Request> requests_;
  std::multimap<absl::Time, std::function<void()>> schedule_;
  uint64_t last_incarnation_ = 0;
  uint64_t last_session_ = 0;
  int pool_blocks_ = 0;
  double slow_streams_ = 0;
};

}  // namespace
}  // namespace sluice::testing

int main(int argc, char** argv) {
  using sluice::testing::Totals;
  uint64_t first = 1, count = 1000;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const uint64_t value = std::strtoull(argv[i + 1], nullptr, 10);
    if (flag == "--seed") {
      first = value;
      count = 1;
      sluice::testing::g_trace = true;
    } else if (flag == "--seeds") {
      count = value;
    } else if (flag == "--first") {
      first = value;
    } else {
      std::printf("unknown flag %s\n", argv[i]);
      return 2;
    }
  }
  sluice::MetricsRegistry registry;
  sluice::worker::WorkerMetrics metrics(&registry);
  Totals totals;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    sluice::testing::g_seed = seed;
    sluice::testing::Cluster(seed, &metrics, &totals).Run();
  }
  std::printf(
      "%llu seeds passed: %d requests completed, %d failed, %d cancelled; %llu attempts planned "
      "anew, "
      "%llu events\n",
      static_cast<unsigned long long>(count), totals.completed, totals.failed, totals.cancelled,
      static_cast<unsigned long long>(totals.retries),
      static_cast<unsigned long long>(totals.events));
  // Faults must not be so hard that nothing is left to check.
  return totals.completed > 2 * totals.failed ? 0 : 1;
}
