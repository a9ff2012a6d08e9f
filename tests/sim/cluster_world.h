// The whole cluster in virtual time: the real router cores (two routers over the same workers, in
// most seeds), role handlers, engines over FakeModel, schedulers and transfer agents, with a faulty
// network under the KV transfers and under the fleet's streams.
//
// Faults: workers and routers crash (loudly, or with their machine), are paused (SIGSTOP) or
// suspended (their clock stands still too) and come back; clocks jump and run at their own rate;
// nodes are slow; streams break, are cut one way and heal; KV messages are lost, doubled, delayed,
// damaged; clients leave, or ask another router when theirs is gone.
//
// Checked after every event:
//   - a request's tokens come once each, in order, and are those of an undisturbed run (FakeModel's
//     logits come from the bytes in the KV blocks, so a foreign byte gives another token);
//   - a sequence starts only over KV that is its own, position by position;
//   - no block is free, or another's, while the network may still write to it or read it;
//   - block states sum to the pool, and scheduler and block manager agree with each other;
//   - a request ends once, and an error has a cause in the history of faults;
//   - an attempt is sent to a worker to compute once, whatever is planned anew;
//   - without faults about, a request that ended, or lost its router, is gone from every worker at
//     once, whatever is left of its answer.
// When the faults have stopped: every request has ended, new ones are all answered, no worker holds
// anything for anybody, and no router counts load that is not there.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "tests/sim/chance.h"
#include "tests/sim/fault_history.h"
#include "tests/sim/seed_runner.h"
#include "tests/sim/sim_request.h"
#include "tests/sim/sim_router.h"
#include "tests/sim/sim_streams.h"
#include "tests/sim/sim_worker.h"

namespace sluice::testing {

inline constexpr int kMaxModelLen = 512;
inline constexpr int kNumRequests = 10;
inline constexpr int kNumLateRequests = 4;
inline constexpr absl::Duration kFaultTime = absl::Seconds(6);
// After it every worker is back and every stale session forgotten: everything is served again.
inline constexpr absl::Duration kCalmAfter = absl::Seconds(10);
inline constexpr absl::Duration kSettleTime = absl::Seconds(90);
inline constexpr absl::Duration kLoadInterval = absl::Milliseconds(200);
// How long a fault is felt after its end: silence, leases, registration.
inline constexpr absl::Duration kAftermath = absl::Seconds(4);
inline constexpr absl::Duration kMaxRestart = absl::Milliseconds(500);
// Messages take 2 ms, a slow worker's step 60 ms.
inline constexpr absl::Duration kFreedWithin = absl::Milliseconds(200);
// Not before the workers have registered.
inline constexpr absl::Duration kFirstRequest = absl::Milliseconds(500);

struct Totals {
  int completed = 0, failed = 0, cancelled = 0, lost_with_router = 0;
  uint64_t retries = 0, events = 0;
};
inline Totals g_totals;  // of all seeds of this process

// Time, the workers and the end are in cluster_world.cc, routers and requests in
// cluster_world_requests.cc, the script of a seed in cluster_world_faults.cc.
class Cluster : public Simulation {
 public:
  Cluster(uint64_t seed, bool trace);

  const std::vector<ScriptEntry>& script() const override { return script_; }

  void Run(const Selection& selection) override;

 private:
  int num_workers() const { return static_cast<int>(workers_.size()); }
  int num_routers() const { return static_cast<int>(routers_.size()); }
  SimWorker* WorkerAt(int i) const { return workers_[static_cast<size_t>(i)].get(); }
  SimRouter* RouterAt(int r) const { return routers_[static_cast<size_t>(r)].get(); }

  // --- time ---
  void After(absl::Duration delay, std::function<void()> action);
  template <typename... Args>
  void Trace(const Args&... args) const {
    if (!trace_) return;
    std::printf("%10.6f %s\n", absl::ToDoubleSeconds(network_.Now() - start_),
                absl::StrCat(args...).c_str());
  }
  [[noreturn]] void Fail(const std::string& what) const {
    FailSimulation(network_.Now() - start_, what);
  }

  void Advance(absl::Time until);

  // --- workers and their streams ---
  StreamsWorld MakeStreamsWorld();
  void StartWorker(int i);
  void DialLater(int i, int r, Incarnation incarnation);
  void Dial(int i, int r, Incarnation incarnation);
  void ReportLoad(int i, Incarnation incarnation, router::SessionId session);

  // --- routers ---
  void StartRouter(int r);
  void CarryOut(int r, router::Action action);
  void ExpectNew(const router::AttemptKey& key);
  void OnEnd(const router::EndRequest& ended);
  void ExpectFreed(size_t r);
  void CountRetries(const SimRouter& router);

  // --- requests ---
  // Its number; `chance` decides what it is.
  size_t DrawRequest(testing::Chance* chance);
  // The next turn of an earlier conversation: its prompt and answer, and a little more.
  size_t DrawContinuation();
  void Submit(size_t r, absl::Duration delay);
  void SubmitNow(size_t r);
  // The connections of its clients break. Some ask again, as a new request.
  void LoseRequestsOf(int router, bool silent);
  void Cancel(size_t r);

  // --- the script ---
  void WriteScript();
  void AddRequest(size_t r, absl::Duration at);
  // Its answer takes half a second or more.
  void MakeLong(size_t r);
  void WriteFaults();
  void WriteRate(const char* what, double max, double SimFaults::*rate);
  void WriteWorkerCrash(absl::Duration at, bool silent);
  void WriteWorkerPause(absl::Duration at, bool suspended);
  void WriteStreamFault(absl::Duration at);
  void WriteRouterCrash(absl::Duration at, bool silent);
  void WriteRouterPause(absl::Duration at);
  void WriteClockFault(absl::Duration at);
  // One to four faults of one kind, in some of the seeds.
  void WriteTimes(double probability, const std::function<void(absl::Duration)>& write);
  void Add(absl::Duration at, const std::string& text, std::function<void()> fault);
  void DisturbWorker(int i, absl::Duration length);
  void DisturbRouter(int r, absl::Duration length);
  void Heal();
  void StopFaults();

  // --- the end ---
  std::string WhatIsLeft() const;

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

SimulationProgram ClusterSimulation();

}  // namespace sluice::testing
