#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/kvtransfer/handoff_world.h"

namespace sluice::testing {

void World::WriteScript() {
  WriteRate("are slow", 0.2, &SimFaults::slow);
  WriteRate("are dropped", 0.2, &SimFaults::drop);
  WriteRate("are doubled", 0.3, &SimFaults::duplicate);
  WriteRate("have a damaged header", 0.1, &SimFaults::damage_header);
  WriteRate("have a damaged payload", 0.2, &SimFaults::damage_payload);
  WriteRate("fail while they are received", 0.2, &SimFaults::fail_receive);
  WriteRate("never end by themselves", 0.02, &SimFaults::hang_receive);
  if (planned_.Once(0.4)) {
    script_.push_back({"owners cancel transfers", [this] { cancels_ = true; }});
  }
  WriteTimes(0.5, [this] {
    const int i = planned_.Pick(0, 3);
    AddEntry(absl::StrCat("node ", i, " crashes and restarts"), [this, i] { Restart(i); });
  });
  WriteTimes(0.5, [this] {
    const int i = planned_.Pick(0, 3);
    const bool suspended = planned_.Once(0.3);
    const absl::Duration length = planned_.UpTo(absl::Seconds(4));
    AddEntry(absl::StrCat("node ", i, suspended ? " is suspended for " : " is paused for ",
                          absl::FormatDuration(length)),
             [this, i, suspended, length] { Pause(i, suspended, length); });
  });
  WriteTimes(0.5, [this] {
    const int from = planned_.Pick(0, 3), to = planned_.Pick(0, 3);
    AddEntry(absl::StrCat("cut from ", from, " to ", to), [this, from, to] {
      network_.Cut(nodes_[from]->channel.get(), nodes_[to]->channel.get());
    });
  });
  if (planned_.Once(0.3)) AddEntry("cuts heal", [this] { network_.HealAllLinks(); });
  WriteTimes(0.4, [this] {
    const int i = planned_.Pick(0, 3);
    const absl::Duration jump = planned_.UpTo(absl::Seconds(planned_.Once(0.1) ? 3600 : 8));
    AddEntry(absl::StrCat("the clock of node ", i, " jumps by ", absl::FormatDuration(jump)),
             [this, i, jump] { nodes_[i]->clock.Jump(jump); });
  });
  WriteTimes(0.3, [this] {
    const int i = planned_.Pick(0, 3);
    const double rate = planned_.Pick(900, 1100) / 1e3;
    AddEntry(absl::StrCat("the clock of node ", i, " runs at ", rate), [this, i, rate] {
      if (!nodes_[i]->paused) nodes_[i]->clock.SetRate(rate);
    });
  });
  for (int i = 0; i < kNumRequests; ++i) {
    const int num_tokens = planned_.Pick(1, 10 * kBlockTokens);
    const absl::Duration at = planned_.UpTo(absl::Seconds(5));
    script_.push_back(
        {absl::StrCat(absl::FormatDuration(at), ": request ", i, " of ", num_tokens, " tokens"),
         [this, i, num_tokens, at] {
           requests_[i].wanted = true;
           requests_[i].num_tokens = num_tokens;
           After(at, [this, i] { Plan(i); });
         }});
  }
}

void World::WriteRate(const char* what, double max, double SimFaults::*rate) {
  if (!planned_.Once(0.5)) return;
  const double value = max * planned_.Fraction();
  script_.push_back({absl::StrFormat("%.1f %% of the messages %s", 100 * value, what),
                     [this, rate, value] { faults_.*rate = value; }});
}

void World::WriteTimes(double probability, const std::function<void()>& write) {
  if (!planned_.Once(probability)) return;
  for (int n = planned_.Pick(1, 4); n > 0; --n) write();
}

void World::AddEntry(const std::string& text, std::function<void()> fault) {
  const absl::Duration at = planned_.UpTo(kFaultTime);
  script_.push_back({absl::StrCat(absl::FormatDuration(at), ": ", text),
                     [this, at, text, fault = std::move(fault)] {
                       After(at, [this, text, fault] {
                         Trace(text);
                         fault();
                       });
                     }});
}

void World::Pause(int i, bool suspended, absl::Duration length) {
  Node* node = nodes_[i].get();
  if (node->paused) return;
  SetPaused(i, true);
  const double rate = node->clock.rate();
  if (suspended) node->clock.SetRate(0);  // as CLOCK_MONOTONIC of a suspended machine
  After(length, [this, i, rate, incarnation = node->incarnation] {
    if (nodes_[i]->incarnation != incarnation) return;
    nodes_[i]->clock.SetRate(rate);
    SetPaused(i, false);
  });
}

void World::StopFaults() {
  Trace("faults stop");
  network_.set_faults(calm_);
  network_.HealAllLinks();
}

}  // namespace sluice::testing
