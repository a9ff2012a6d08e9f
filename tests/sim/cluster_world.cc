#include "tests/sim/cluster_world.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "metrics/metrics.h"
#include "tests/sim/chance.h"
#include "tests/sim/sim_request.h"
#include "tests/sim/sim_router.h"
#include "tests/sim/sim_streams.h"
#include "tests/sim/sim_worker.h"

namespace sluice::testing {
namespace {

constexpr int kMaxModelLen = 512;
constexpr int kNumRequests = 10;
constexpr int kNumLateRequests = 4;
constexpr absl::Duration kFaultTime = absl::Seconds(6);
// After it every worker is back and every stale session forgotten: everything is served again.
constexpr absl::Duration kCalmAfter = absl::Seconds(10);
constexpr absl::Duration kSettleTime = absl::Seconds(90);
constexpr absl::Duration kLoadInterval = absl::Milliseconds(200);
// How long a fault is felt after its end: silence, leases, registration.
constexpr absl::Duration kAftermath = absl::Seconds(4);
constexpr absl::Duration kMaxRestart = absl::Milliseconds(500);
// Messages take 2 ms, a slow worker's step 60 ms.
constexpr absl::Duration kFreedWithin = absl::Milliseconds(200);
// Not before the workers have registered.
constexpr absl::Duration kFirstRequest = absl::Milliseconds(500);

struct Totals {
  int completed = 0, failed = 0, cancelled = 0, lost_with_router = 0;
  uint64_t retries = 0, events = 0;
};
Totals g_totals;  // of all seeds of this process

worker::WorkerMetrics* Metrics() {
  static auto* registry = new MetricsRegistry();
  static auto* metrics = new worker::WorkerMetrics(registry);
  return metrics;
}

RequestId IdOf(size_t r) {
  RequestId id;
  id.bytes[0] = static_cast<uint8_t>(r + 1);
  return id;
}
size_t NumberOf(const RequestId& id) { return id.bytes[0] - 1u; }

router::CoreOptions RouterOptions() {
  router::CoreOptions options;
  options.request_timeout = absl::Seconds(60);
  options.capacity_timeout = absl::Seconds(20);
  return options;
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

class Cluster : public Simulation {
 public:
  Cluster(uint64_t seed, bool trace)
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

  const std::vector<ScriptEntry>& script() const override { return script_; }

  void Run(const Selection& selection) override {
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

 private:
  int num_workers() const { return static_cast<int>(workers_.size()); }
  int num_routers() const { return static_cast<int>(routers_.size()); }
  SimWorker* WorkerAt(int i) const { return workers_[static_cast<size_t>(i)].get(); }
  SimRouter* RouterAt(int r) const { return routers_[static_cast<size_t>(r)].get(); }

  // --- time ---
  void After(absl::Duration delay, std::function<void()> action) {
    schedule_.emplace(network_.Now() + delay, std::move(action));
  }
  template <typename... Args>
  void Trace(const Args&... args) const {
    if (!trace_) return;
    std::printf("%10.6f %s\n", absl::ToDoubleSeconds(network_.Now() - start_),
                absl::StrCat(args...).c_str());
  }
  [[noreturn]] void Fail(const std::string& what) const {
    FailSimulation(network_.Now() - start_, what);
  }

  void Advance(absl::Time until) {
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

  // --- workers and their streams ---
  StreamsWorld MakeStreamsWorld() {
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
  void StartWorker(int i) {
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
  void DialLater(int i, int r, Incarnation incarnation) {
    After(absl::Milliseconds(50) + random_.UpTo(absl::Milliseconds(200)),
          [this, i, r, incarnation] { Dial(i, r, incarnation); });
  }
  void Dial(int i, int r, Incarnation incarnation) {
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
  void ReportLoad(int i, Incarnation incarnation, router::SessionId session) {
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

  // --- routers ---
  void StartRouter(int r) {
    Trace("router ", r, " starts");
    routers_[static_cast<size_t>(r)] = std::make_unique<SimRouter>(
        RouterOptions(), &network_,
        [this, r](router::Action action) { CarryOut(r, std::move(action)); });
  }
  void CarryOut(int r, router::Action action) {
    if (const auto* emitted = std::get_if<router::EmitTokens>(&action)) {
      const size_t number = NumberOf(emitted->id);
      const std::string wrong = CheckTokens(*emitted, &requests_.at(number));
      if (!wrong.empty()) Fail(absl::StrCat("request ", number, ": ", wrong));
    } else if (const auto* ended = std::get_if<router::EndRequest>(&action)) {
      OnEnd(*ended);
    } else if (const auto* close = std::get_if<router::CloseSession>(&action)) {
      Trace("router ", r, " closes stream ", close->session.value, ": ", close->reason);
      streams_.CloseByRouter(close->session);
    } else {
      if (const auto* prefill = std::get_if<router::SendPrefill>(&action)) {
        ExpectNew(prefill->sequence.key);
      } else if (const auto* run = std::get_if<router::SendRun>(&action)) {
        ExpectNew(run->sequence.key);
      }
      std::visit(
          [this, &action](const auto& a) {
            if constexpr (requires { a.to; }) streams_.SendDown(a.to, std::move(action));
          },
          action);
    }
  }
  void ExpectNew(const router::AttemptKey& key) {
    if (!computed_.insert(key).second) {
      Fail(absl::StrCat("attempt ", key.attempt.value, " of request ", NumberOf(key.request),
                        " is computed twice"));
    }
  }
  void OnEnd(const router::EndRequest& ended) {
    const size_t r = NumberOf(ended.id);
    SimRequest& request = requests_.at(r);
    const absl::Time now = network_.Now();
    Trace("request ", r, " ends after ", request.num_emitted,
          " tokens: ", static_cast<int>(ended.result.end), " ", ended.result.status.ToString());
    const std::string wrong = CheckEnd(ended.result, request, history_, by_role_, now);
    if (!wrong.empty()) Fail(absl::StrCat("request ", r, ": ", wrong));
    request.ended = true;
    switch (ended.result.end) {
      case router::GenerationEnd::kCancelled:
        ++g_totals.cancelled;
        break;
      case router::GenerationEnd::kFailed:
        ++g_totals.failed;
        break;
      default:
        ++g_totals.completed;
    }
    ExpectFreed(r);
  }
  void ExpectFreed(size_t r) {
    After(kFreedWithin, [this, r] {
      const SimRequest& request = requests_[r];
      const absl::Time now = network_.Now();
      if (history_.NumWorkerFaults(request.submitted_at, now) > 0 ||
          history_.TransfersDisturbed(request.submitted_at, now)) {
        return;
      }
      for (const auto& worker : workers_) {
        if (worker->Holds(request.spec.id)) {
          Fail(absl::StrCat("request ", r, " ended, but ", worker->options().name,
                            " holds blocks of it"));
        }
      }
    });
  }
  void CountRetries(const SimRouter& router) {
    for (const auto& by_reason : router.core().counters().retries) {
      for (uint64_t count : by_reason) g_totals.retries += count;
    }
  }

  // --- requests ---
  // Its number; `chance` decides what it is.
  size_t DrawRequest(testing::Chance* chance) {
    const size_t r = requests_.size();
    SimRequest request;
    request.spec.id = IdOf(r);
    // Some prompts begin alike: cached prefixes on both sides.
    request.spec.prompt = MakeTokens(chance->Once(0.4) ? 7 : chance->Bits(), chance->Pick(1, 300));
    request.spec.sampling.seed = chance->Bits();
    request.spec.sampling.temperature = chance->Once(0.5) ? 0 : 1;
    request.spec.sampling.max_tokens =
        chance->Once(0.1) ? chance->Pick(1, 200) : chance->Pick(1, 24);
    if (chance->Once(0.5)) request.spec.sampling.stop_token_ids = {3};
    request.router = chance->Pick(0, num_routers() - 1);
    requests_.push_back(std::move(request));
    return r;
  }
  // The next turn of an earlier conversation: its prompt and answer, and a little more.
  size_t DrawContinuation() {
    const size_t earlier = static_cast<size_t>(random_.Pick(0, kNumRequests - 1));
    const size_t r = DrawRequest(&random_);
    if (!requests_[earlier].wanted) return r;
    std::vector<TokenId>& prompt = requests_[r].spec.prompt;
    prompt = requests_[earlier].spec.prompt;
    for (const SampledToken& token : requests_[earlier].expected.tokens) {
      prompt.push_back(token.token);
    }
    for (TokenId token : MakeTokens(random_.Bits(), random_.Pick(1, 8))) prompt.push_back(token);
    if (prompt.size() >= kMaxModelLen) prompt.resize(kMaxModelLen - 1);
    return r;
  }
  void Submit(size_t r, absl::Duration delay) {
    SimRequest& request = requests_[r];
    SequenceInput input;
    input.tokens = request.spec.prompt;
    input.sampling = request.spec.sampling;
    request.expected = OracleAnswer(input, kMaxModelLen);
    request.wanted = true;
    After(delay, [this, r] { SubmitNow(r); });
  }
  void SubmitNow(size_t r) {
    SimRequest& request = requests_[r];
    // A client asks another router when its own is not there.
    for (int tries = 0; RouterAt(request.router) == nullptr && tries < num_routers(); ++tries) {
      request.router = (request.router + 1) % num_routers();
    }
    SimRouter* router = RouterAt(request.router);
    if (router == nullptr) {
      After(absl::Milliseconds(100), [this, r] { SubmitNow(r); });
      return;
    }
    Trace("request ", r, ": ", request.spec.prompt.size(), " tokens, at router ", request.router);
    request.submitted_at = network_.Now();
    router::GenerationSpec spec = request.spec;
    if (request.timeout.has_value()) spec.deadline = router->clock().Now() + *request.timeout;
    router->Deliver(router::RequestSubmitted{std::move(spec)});
  }
  // The connections of its clients break. Some ask again, as a new request.
  void LoseRequestsOf(int router, bool silent) {
    for (size_t r = 0, count = requests_.size(); r < count; ++r) {
      if (requests_[r].router != router || !requests_[r].submitted() || requests_[r].ended)
        continue;
      requests_[r].ended = true;
      ++g_totals.lost_with_router;
      if (!silent) ExpectFreed(r);
      if (requests_[r].cancelled || random_.Once(0.3)) continue;
      SimRequest again = requests_[r];
      const size_t number = requests_.size();
      again.spec.id = IdOf(number);
      again.router = (router + 1) % num_routers();
      again.submitted_at = absl::InfiniteFuture();
      again.num_emitted = 0;
      again.ended = false;
      requests_.push_back(std::move(again));
      Trace("request ", r, " was lost with router ", router, ", asked again as ", number);
      After(random_.UpTo(absl::Seconds(1)), [this, number] { SubmitNow(number); });
    }
  }
  void Cancel(size_t r) {
    SimRequest& request = requests_[r];
    if (!request.submitted() || request.ended || request.cancelled) return;
    Trace("client of ", r, " leaves");
    request.cancelled = true;
    RouterAt(request.router)->Deliver(router::RequestCancelled{request.spec.id});
  }

  // --- the script ---
  void WriteScript() {
    // Some seeds have every kind of fault at once, some one or two: they show different things.
    constexpr double kDensities[] = {0, 0.15, 0.15, 0.4, 0.4, 0.7, 0.7, 1, 1, 1};
    density_ = kDensities[planned_.Pick(0, 9)];
    WriteFaults();
    // A burst of long answers does not fit the pools: sequences wait, and are preempted.
    const bool burst = planned_.Once(0.3);
    const absl::Duration span = burst ? absl::Milliseconds(300) : absl::Seconds(5);
    for (int i = 0; i < kNumRequests; ++i) {
      const absl::Duration at = kFirstRequest + planned_.UpTo(span);
      const size_t r = DrawRequest(&planned_);
      if (planned_.Once(0.1)) {
        requests_[r].timeout = absl::Milliseconds(50) + planned_.UpTo(absl::Seconds(3));
      }
      const bool leaves = planned_.Once(0.08);  // in the middle of a long answer
      if (leaves || (burst && planned_.Once(0.3))) MakeLong(r);
      AddRequest(r, at);
      if (!leaves) continue;
      Add(at + planned_.UpTo(absl::Milliseconds(150)),
          absl::StrCat("the client of request ", r, " leaves"), [this, r] { Cancel(r); });
    }
  }
  void AddRequest(size_t r, absl::Duration at) {
    script_.push_back(
        {absl::StrCat(absl::FormatDuration(at), ": request ", r, " of ",
                      requests_[r].spec.prompt.size(), " tokens at router ", requests_[r].router),
         [this, r, at] { Submit(r, at); }});
  }
  // Its answer takes half a second or more.
  void MakeLong(size_t r) {
    router::GenerationSpec& spec = requests_[r].spec;
    spec.prompt.resize(std::min<size_t>(spec.prompt.size(), 200));
    spec.sampling.max_tokens = 300;
    spec.sampling.stop_token_ids.clear();
  }
  void WriteFaults() {
    WriteRate("are slow", 0.2, &SimFaults::slow);
    WriteRate("are dropped", 0.2, &SimFaults::drop);
    WriteRate("are doubled", 0.3, &SimFaults::duplicate);
    WriteRate("have a damaged header", 0.1, &SimFaults::damage_header);
    WriteRate("have a damaged payload", 0.1, &SimFaults::damage_payload);
    WriteRate("fail while they are received", 0.2, &SimFaults::fail_receive);
    WriteRate("never end by themselves", 0.02, &SimFaults::hang_receive);
    if (planned_.Once(0.3 * density_)) {
      const double slow = 0.3 * planned_.Fraction();
      script_.push_back(
          {absl::StrFormat("%.1f %% of stream messages are slow", 100 * slow), [this, slow] {
             history_.DisturbTransfers(start_, start_ + kFaultTime + kAftermath);
             streams_.set_slow(slow);
           }});
    }
    for (int i = 0; i < num_workers(); ++i) {
      if (!planned_.Once(0.15 * density_)) continue;
      script_.push_back({absl::StrCat("worker ", i, " is slow"), [this, i] {
                           step_time_[static_cast<size_t>(i)] = absl::Milliseconds(60);
                         }});
    }
    WriteTimes(0.5, [this](absl::Duration at) { WriteWorkerCrash(at, planned_.Once(0.3)); });
    WriteTimes(0.4, [this](absl::Duration at) { WriteWorkerPause(at, planned_.Once(0.3)); });
    WriteTimes(0.4, [this](absl::Duration at) { WriteStreamFault(at); });
    WriteTimes(0.3, [this](absl::Duration at) { WriteRouterCrash(at, planned_.Once(0.3)); });
    WriteTimes(0.3, [this](absl::Duration at) { WriteRouterPause(at); });
    if (planned_.Once(0.2 * density_)) {  // while nothing else is wrong
      WriteRouterCrash(kFaultTime + kCalmAfter + planned_.UpTo(absl::Seconds(1)), false);
    }
    WriteTimes(0.3, [this](absl::Duration at) { WriteClockFault(at); });
    WriteTimes(0.4, [this](absl::Duration at) {
      const int from = planned_.Pick(0, num_workers() - 1),
                to = planned_.Pick(0, num_workers() - 1);
      Add(at, absl::StrCat("KV is cut from worker ", from, " to ", to), [this, from, to] {
        if (WorkerAt(from) == nullptr || WorkerAt(to) == nullptr) return;
        history_.DisturbTransfers(network_.Now(), start_ + kFaultTime + kAftermath);
        network_.Cut(WorkerAt(from)->channel(), WorkerAt(to)->channel());
      });
    });
    WriteTimes(0.3, [this](absl::Duration at) { Add(at, "all cuts heal", [this] { Heal(); }); });
  }
  void WriteRate(const char* what, double max, double SimFaults::*rate) {
    if (!planned_.Once(0.4 * density_)) return;
    const double value = max * planned_.Fraction();
    script_.push_back(
        {absl::StrFormat("%.1f %% of KV messages %s", 100 * value, what), [this, rate, value] {
           history_.DisturbTransfers(start_, start_ + kFaultTime + kAftermath);
           faults_.*rate = value;
         }});
  }
  void WriteWorkerCrash(absl::Duration at, bool silent) {
    const int i = planned_.Pick(0, num_workers() - 1);
    const absl::Duration down = planned_.UpTo(kMaxRestart);
    Add(at,
        absl::StrCat("worker ", i, silent ? " dies with its machine for " : " crashes for ",
                     absl::FormatDuration(down)),
        [this, i, silent, down] {
          if (WorkerAt(i) == nullptr) return;
          DisturbWorker(i, down);
          workers_[static_cast<size_t>(i)].reset();
          streams_.WorkerDied(i, silent);
          After(down, [this, i] { StartWorker(i); });
        });
  }
  void WriteWorkerPause(absl::Duration at, bool suspended) {
    const int i = planned_.Pick(0, num_workers() - 1);
    const absl::Duration length = planned_.UpTo(absl::Seconds(3));
    Add(at,
        absl::StrCat("worker ", i, suspended ? " is suspended for " : " is paused for ",
                     absl::FormatDuration(length)),
        [this, i, suspended, length] {
          SimWorker* worker = WorkerAt(i);
          if (worker == nullptr || worker->paused) return;
          DisturbWorker(i, length);
          const double rate = worker->clock().rate();
          if (suspended) worker->clock().SetRate(0);
          worker->paused = true;
          network_.SetPaused(worker->channel(), true);
          After(length, [this, i, rate, incarnation = worker->options().incarnation] {
            SimWorker* same = WorkerAt(i);
            if (same == nullptr || same->options().incarnation != incarnation) return;
            Trace(same->options().name, " goes on");
            same->clock().SetRate(rate);
            same->paused = false;
            network_.SetPaused(same->channel(), false);
            streams_.PumpWorker(i);
          });
        });
  }
  void WriteStreamFault(absl::Duration at) {
    const int i = planned_.Pick(0, num_workers() - 1), r = planned_.Pick(0, num_routers() - 1);
    switch (planned_.Pick(0, 2)) {
      case 0: {
        const int which = planned_.Pick(0, 100);
        Add(at, "a stream is reset", [this, which] {
          const std::vector<router::SessionId> open = streams_.OpenStreams();
          if (open.empty()) return;
          const router::SessionId session = open[static_cast<size_t>(which) % open.size()];
          DisturbWorker(streams_.worker_of(session), absl::ZeroDuration());
          streams_.Break(session);
        });
        return;
      }
      case 1:
        Add(at, absl::StrCat("cut from worker ", i, " to router ", r), [this, i, r] {
          DisturbWorker(i, kFaultTime);
          streams_.Cut(i, r, SimStreams::Direction::kUp);
        });
        return;
      default:
        Add(at, absl::StrCat("cut from router ", r, " to worker ", i), [this, i, r] {
          DisturbWorker(i, kFaultTime);
          streams_.Cut(i, r, SimStreams::Direction::kDown);
        });
    }
  }
  void WriteRouterCrash(absl::Duration at, bool silent) {
    const int r = planned_.Pick(0, num_routers() - 1);
    const absl::Duration down = planned_.UpTo(absl::Seconds(2));
    if (at > kFirstRequest) {  // in the middle of an answer
      const size_t lost = DrawRequest(&planned_);
      MakeLong(lost);
      requests_[lost].router = r;
      AddRequest(lost, at - planned_.UpTo(absl::Milliseconds(200)));
    }
    Add(at,
        absl::StrCat("router ", r, silent ? " dies with its machine for " : " crashes for ",
                     absl::FormatDuration(down)),
        [this, r, silent, down] {
          if (RouterAt(r) == nullptr) return;
          DisturbRouter(r, down);
          CountRetries(*RouterAt(r));
          routers_[static_cast<size_t>(r)].reset();
          streams_.RouterDied(r, silent);
          LoseRequestsOf(r, silent);
          After(down, [this, r] {
            StartRouter(r);
            After(random_.UpTo(2 * kLoadInterval),
                  [this, r] { streams_.ResetStreamsOfDeadRouter(r); });
          });
        });
  }
  void WriteRouterPause(absl::Duration at) {
    const int r = planned_.Pick(0, num_routers() - 1);
    const absl::Duration length = planned_.UpTo(absl::Seconds(2));
    const bool suspended = planned_.Once(0.3);
    Add(at,
        absl::StrCat("router ", r, suspended ? " is suspended for " : " is paused for ",
                     absl::FormatDuration(length)),
        [this, r, suspended, length] {
          SimRouter* router = RouterAt(r);
          if (router == nullptr || router->paused) return;
          DisturbRouter(r, length);
          const double rate = router->clock().rate();
          if (suspended) router->clock().SetRate(0);
          router->paused = true;
          After(length, [this, r, router, rate] {
            if (RouterAt(r) != router) return;  // another life
            router->clock().SetRate(rate);
            router->paused = false;
          });
        });
  }
  void WriteClockFault(absl::Duration at) {
    const bool of_router = planned_.Once(0.3);
    const int n = planned_.Pick(0, (of_router ? num_routers() : num_workers()) - 1);
    const std::string whose = absl::StrCat("the clock of ", of_router ? "router " : "worker ", n);
    const auto clock_of = [this, of_router, n]() -> NodeClock* {
      if (of_router) return RouterAt(n) == nullptr ? nullptr : &RouterAt(n)->clock();
      return WorkerAt(n) == nullptr ? nullptr : &WorkerAt(n)->clock();
    };
    if (planned_.Once(0.5)) {
      const absl::Duration jump = planned_.UpTo(absl::Seconds(planned_.Once(0.1) ? 3600 : 8));
      Add(at, absl::StrCat(whose, " jumps by ", absl::FormatDuration(jump)),
          [this, clock_of, of_router, n, jump] {
            if (clock_of() == nullptr) return;
            of_router ? DisturbRouter(n, jump) : DisturbWorker(n, jump);
            clock_of()->Jump(jump);
          });
      return;
    }
    const double rate = planned_.Pick(900, 1100) / 1e3;
    Add(at, absl::StrCat(whose, " runs at ", rate), [clock_of, rate] {
      if (clock_of() != nullptr && clock_of()->rate() != 0) clock_of()->SetRate(rate);
    });
  }
  // One to four faults of one kind, in some of the seeds.
  void WriteTimes(double probability, const std::function<void(absl::Duration)>& write) {
    if (!planned_.Once(probability * density_)) return;
    for (int n = planned_.Pick(1, 4); n > 0; --n) write(planned_.UpTo(kFaultTime));
  }
  void Add(absl::Duration at, const std::string& text, std::function<void()> fault) {
    script_.push_back({absl::StrCat(absl::FormatDuration(at), ": ", text),
                       [this, at, text, fault = std::move(fault)] {
                         After(at, [this, text, fault] {
                           Trace(text);
                           fault();
                         });
                       }});
  }
  void DisturbWorker(int i, absl::Duration length) {
    history_.DisturbWorker(i, network_.Now(), network_.Now() + length + kAftermath);
  }
  void DisturbRouter(int r, absl::Duration length) {
    history_.DisturbRouter(r, network_.Now(), network_.Now() + length + kAftermath);
  }
  void Heal() {
    network_.HealAllLinks();
    streams_.HealAll();
  }
  void StopFaults() {
    Trace("faults stop");
    network_.set_faults(SimFaults());
    streams_.set_slow(0);
    Heal();
  }

  // --- the end ---
  std::string WhatIsLeft() const {
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

  const bool trace_;
  testing::Chance planned_;  // for the script
  testing::Chance random_;   // for the run
  double density_ = 0;       // of faults
  SimNetwork network_;
  const absl::Time start_;
  SimStreams streams_;
  SimFaults faults_;
  FaultHistory history_;
  std::vector<ScriptEntry> script_;
  std::vector<router::WorkerRole> roles_;
  WorkersByRole by_role_;
  std::vector<std::unique_ptr<SimWorker>> workers_;  // null while a process is down
  std::vector<std::unique_ptr<SimRouter>> routers_;  // likewise
  std::vector<absl::Duration> step_time_;
  std::vector<SimRequest> requests_;
  std::set<router::AttemptKey> computed_;  // sent to a worker to compute
  std::multimap<absl::Time, std::function<void()>> schedule_;
  uint64_t last_incarnation_ = 0;
  int pool_blocks_ = 0;
};

}  // namespace

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
