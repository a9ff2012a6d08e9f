#include "tests/kvtransfer/handoff_world.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::testing {
namespace {

uint64_t num_handoff_polls = 0;  // of all seeds of this process

}  // namespace

World::World(uint64_t seed, bool trace)
    : trace_(trace), planned_(Mix(seed)), random_(Mix(seed + 1)), network_(seed) {
  start_ = network_.Now();
  options_.window_bytes = kBlockBytes * planned_.Pick(1, 6);
  options_.target_message_bytes = kBlockBytes * planned_.Pick(1, 4);
  options_.ahead_bytes = kBlockBytes * planned_.Pick(0, 8);
  options_.lease = absl::Seconds(planned_.Pick(2, 5));
  options_.max_tombstones = planned_.Once(0.2) ? 2 : kManyTombstones;
  calm_.eager_bytes = planned_.Once(0.3) ? 2 * kBlockBytes : 16;
  calm_.report_crash = planned_.Once(0.5) ? 1 : 0;
  calm_.read_needs_sender = planned_.Once(0.5);
  faults_ = calm_;
  for (int i = 0; i < 4; ++i) nodes_.push_back(NewNode(i));
  requests_.resize(kNumRequests);
  WriteScript();
}

void World::Run(const Selection& selection) {
  for (int entry : selection) script_[static_cast<size_t>(entry)].install();
  network_.set_faults(faults_);
  Advance(start_ + kFaultTime);
  StopFaults();
  absl::Time deadline = network_.Now() + kSettleTime;
  while (network_.Now() < deadline && !Settled()) {
    Advance(std::min(deadline, network_.Now() + absl::Seconds(1)));
  }
  CheckEnd();
}

void World::After(absl::Duration delay, std::function<void()> action) {
  schedule_.emplace(network_.Now() + delay, std::move(action));
}

void World::Advance(absl::Time until) {
  int without_time = 0;
  while (true) {
    absl::Time now = network_.Now();
    absl::Time next = std::min(until, network_.NextEventTime());
    if (!schedule_.empty()) next = std::min(next, schedule_.begin()->first);
    for (const auto& node : nodes_) next = std::min(next, WakeTime(*node));
    next = std::max(next, now);
    without_time = next == now ? without_time + 1 : 0;
    if (without_time > 20000) Fail(now, "no progress in time: somebody spins");
    network_.AdvanceTo(next);
    while (!schedule_.empty() && schedule_.begin()->first <= next) {
      std::function<void()> action = std::move(schedule_.begin()->second);
      schedule_.erase(schedule_.begin());
      action();
    }
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (WakeTime(*nodes_[i]) <= next) PollNode(nodes_[i].get());
    }
    if (next >= until) return;
  }
}

absl::Time World::WakeTime(const Node& node) const {
  if (node.paused) return absl::InfiniteFuture();
  return node.channel->has_events() ? network_.Now()
                                    : node.clock.ToReference(node.agent->NextDeadline());
}

std::unique_ptr<Node> World::NewNode(int i) {
  return std::make_unique<Node>(&network_, absl::StrCat(i < 2 ? "p" : "d", i),
                                Incarnation(++last_incarnation_), options_);
}

void World::Restart(int i) {
  Incarnation old = nodes_[i]->incarnation;
  nodes_[i]->agent.reset();
  nodes_[i] = NewNode(i);
  // The router notices the broken stream a little later.
  After(RandomDelay(absl::Milliseconds(50)), [this, old] {
    for (int r = 0; r < kNumRequests; ++r) {
      Request& request = requests_[r];
      if (request.active && (request.p_incarnation == old || request.d_incarnation == old)) {
        EndAttempt(r, request.attempt, "worker died");
      }
    }
  });
}

void World::SetPaused(int i, bool paused) {
  if (!paused) Trace(nodes_[i]->name, " resumes");
  nodes_[i]->paused = paused;
  network_.SetPaused(nodes_[i]->channel.get(), paused);
}

void World::Plan(int r) {
  Request& request = requests_[r];
  if (request.delivered || request.active) return;
  request.attempt++;
  request.active = true;
  request.p = Pick(0, 1);
  request.d = Pick(2, 3);
  request.p_incarnation = nodes_[request.p]->incarnation;
  request.d_incarnation = nodes_[request.d]->incarnation;
  // Rarely the router believes that the new life is still the old one.
  if (Chance(0.9)) request.d_address = nodes_[request.d]->channel->LocalAddress();
  request.transfer = TransferId();
  uint32_t attempt = request.attempt;
  After(RandomDelay(absl::Milliseconds(5)), [this, r, attempt] { ReserveOnDecode(r, attempt); });
  // The router's own deadline for an attempt, in case a report is lost with a crashed process.
  After(absl::Seconds(20), [this, r, attempt] { EndAttempt(r, attempt, "attempt deadline"); });
}

void World::EndAttempt(int r, uint32_t attempt, const std::string& why) {
  Request& request = requests_[r];
  if (!request.active || request.attempt != attempt) return;
  Trace("request ", r, " attempt ", attempt, " ends: ", why);
  request.active = false;
  if (Chance(0.5)) {  // tells the workers, or leaves them to find out
    if (Node* p = Alive(request.p, request.p_incarnation)) {
      p->agent->CancelSend(request.transfer, absl::AbortedError("re-planned"));
    }
    if (Node* d = Alive(request.d, request.d_incarnation)) {
      d->agent->CancelReceive(request.transfer, absl::AbortedError("re-planned"));
    }
  }
  if (!request.delivered) After(RandomDelay(absl::Milliseconds(200)), [this, r] { Plan(r); });
}

Node* World::Alive(int i, Incarnation incarnation) {
  Node* node = nodes_[i].get();
  return node->incarnation == incarnation && !node->paused ? node : nullptr;
}

void World::PollNode(Node* node) {
  ++num_handoff_polls;
  std::vector<TransferEvent> events;
  node->agent->Poll(&events);
  for (const TransferEvent& event : events) {
    if (const auto* fetch = std::get_if<FetchRequested>(&event)) OnFetchRequested(node, *fetch);
    if (const auto* send = std::get_if<SendEnded>(&event)) {
      if (node->lends.erase(send->transfer) == 0) OnSendEnded(node, *send);
    }
    if (const auto* received = std::get_if<Received>(&event)) {
      auto fetch = node->fetches.find(received->transfer);
      if (received->fetched != (fetch != node->fetches.end())) {
        Fail(network_.Now(), "a fetch and a reservation were mixed up");
      }
      if (received->fetched) {
        fetch->second.complete = true;
      } else {
        OnReceived(node, *received);
      }
    }
    if (const auto* aborted = std::get_if<ReceiveAborted>(&event)) {
      OnReceiveAborted(node, *aborted);
    }
    if (const auto* ended = std::get_if<ReceiveEnded>(&event)) {
      if (node->fetches.contains(ended->transfer)) {
        OnFetchEnded(node, *ended);
      } else {
        OnReceiveEnded(node, *ended);
      }
    }
  }
}

bool World::Settled() const {
  for (const Request& request : requests_) {
    if (request.wanted && !request.delivered) return false;
  }
  for (const auto& node : nodes_) {
    if (node->paused) return false;
    TransferStats stats = node->agent->Stats();
    if (stats.sends_in_flight > 0 || stats.receives_in_flight > 0) return false;
    if (node->agent->NextDeadline() != absl::InfiniteFuture()) return false;
  }
  return network_.NextEventTime() == absl::InfiniteFuture();
}

void World::CheckEnd() {
  absl::Time now = network_.Now();
  for (int r = 0; r < kNumRequests; ++r) {
    if (requests_[r].wanted && !requests_[r].delivered)
      Fail(now, absl::StrCat("request ", r, " was never delivered"));
  }
  for (const auto& node : nodes_) {
    TransferStats stats = node->agent->Stats();
    if (stats.sends_in_flight > 0 || stats.receives_in_flight > 0 || !node->sends.empty() ||
        !node->receives.empty() || !node->fetches.empty() || !node->lends.empty()) {
      for (const auto& [id, job] : node->sends) Trace("sending ", job.request, " ", job.attempt);
      for (const auto& [id, job] : node->receives) Trace("receiving ", job.request);
      Fail(now, absl::StrCat("transfers left on ", node->name));
    }
    size_t cached = 0;
    for (const auto& [request, prefix] : node->cache) cached += prefix.blocks.size();
    if (node->pool.num_free() + cached != kBlocksPerNode) {
      Fail(now, absl::StrCat("blocks leaked on ", node->name));
    }
    if (node->agent->NextDeadline() != absl::InfiniteFuture()) {
      Fail(now, absl::StrCat(node->name, " is idle and still wants to wake up"));
    }
  }
  if (network_.NextEventTime() != absl::InfiniteFuture()) Fail(now, "network does not get quiet");
}

RequestId World::IdOf(int r) {
  RequestId id;
  id.bytes[0] = static_cast<uint8_t>(r + 1);
  return id;
}

SimulationProgram HandoffSimulation() {
  SimulationProgram program;
  program.name = "handoff_simulation";
  program.default_seeds = 8000;
  program.make = [](uint64_t seed, bool trace) { return std::make_unique<World>(seed, trace); };
  program.summarize = [] {
    std::printf("%llu polls\n", static_cast<unsigned long long>(num_handoff_polls));
    return true;
  };
  return program;
}

}  // namespace sluice::testing
