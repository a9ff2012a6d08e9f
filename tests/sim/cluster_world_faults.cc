#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/sim/cluster_world.h"

namespace sluice::testing {

void Cluster::WriteScript() {
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

void Cluster::AddRequest(size_t r, absl::Duration at) {
  script_.push_back(
      {absl::StrCat(absl::FormatDuration(at), ": request ", r, " of ",
                    requests_[r].spec.prompt.size(), " tokens at router ", requests_[r].router),
       [this, r, at] { Submit(r, at); }});
}

void Cluster::MakeLong(size_t r) {
  router::GenerationSpec& spec = requests_[r].spec;
  spec.prompt.resize(std::min<size_t>(spec.prompt.size(), 200));
  spec.sampling.max_tokens = 300;
  spec.sampling.stop_token_ids.clear();
}

void Cluster::WriteFaults() {
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
    script_.push_back({absl::StrCat("worker ", i, " is slow"),
                       [this, i] { step_time_[static_cast<size_t>(i)] = absl::Milliseconds(60); }});
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
    const int from = planned_.Pick(0, num_workers() - 1), to = planned_.Pick(0, num_workers() - 1);
    Add(at, absl::StrCat("KV is cut from worker ", from, " to ", to), [this, from, to] {
      if (WorkerAt(from) == nullptr || WorkerAt(to) == nullptr) return;
      history_.DisturbTransfers(network_.Now(), start_ + kFaultTime + kAftermath);
      network_.Cut(WorkerAt(from)->channel(), WorkerAt(to)->channel());
    });
  });
  WriteTimes(0.3, [this](absl::Duration at) { Add(at, "all cuts heal", [this] { Heal(); }); });
}

void Cluster::WriteRate(const char* what, double max, double SimFaults::*rate) {
  if (!planned_.Once(0.4 * density_)) return;
  const double value = max * planned_.Fraction();
  script_.push_back(
      {absl::StrFormat("%.1f %% of KV messages %s", 100 * value, what), [this, rate, value] {
         history_.DisturbTransfers(start_, start_ + kFaultTime + kAftermath);
         faults_.*rate = value;
       }});
}

void Cluster::WriteWorkerCrash(absl::Duration at, bool silent) {
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

void Cluster::WriteWorkerPause(absl::Duration at, bool suspended) {
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

void Cluster::WriteStreamFault(absl::Duration at) {
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

void Cluster::WriteRouterCrash(absl::Duration at, bool silent) {
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

void Cluster::WriteRouterPause(absl::Duration at) {
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

void Cluster::WriteClockFault(absl::Duration at) {
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

void Cluster::WriteTimes(double probability, const std::function<void(absl::Duration)>& write) {
  if (!planned_.Once(probability * density_)) return;
  for (int n = planned_.Pick(1, 4); n > 0; --n) write(planned_.UpTo(kFaultTime));
}

void Cluster::Add(absl::Duration at, const std::string& text, std::function<void()> fault) {
  script_.push_back({absl::StrCat(absl::FormatDuration(at), ": ", text),
                     [this, at, text, fault = std::move(fault)] {
                       After(at, [this, text, fault] {
                         Trace(text);
                         fault();
                       });
                     }});
}

void Cluster::DisturbWorker(int i, absl::Duration length) {
  history_.DisturbWorker(i, network_.Now(), network_.Now() + length + kAftermath);
}

void Cluster::DisturbRouter(int r, absl::Duration length) {
  history_.DisturbRouter(r, network_.Now(), network_.Now() + length + kAftermath);
}

void Cluster::Heal() {
  network_.HealAllLinks();
  streams_.HealAll();
}

void Cluster::StopFaults() {
  Trace("faults stop");
  network_.set_faults(SimFaults());
  streams_.set_slow(0);
  Heal();
}

}  // namespace sluice::testing
