#include "tests/kvtransfer/handoff_world.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/sim_channel.h"
#include "tests/sim/chance.h"
#include "tests/sim/node_clock.h"

namespace sluice::testing {
namespace {

constexpr int kBlockTokens = 4;
constexpr size_t kBlockBytes = 192;
constexpr uint8_t kPoison = 0xdd;
constexpr int kBlocksPerNode = 20;
constexpr int kNumRequests = 16;
constexpr int kManyTombstones = 1000;  // more than a run has transfers
constexpr absl::Duration kFaultTime = absl::Seconds(8);
constexpr absl::Duration kSettleTime = absl::Seconds(120);

uint64_t num_handoff_polls = 0;  // of all seeds of this process

[[noreturn]] void Fail(absl::Time now, const std::string& what) {
  FailSimulation(now - absl::UnixEpoch() - absl::Hours(1), what);
}

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What one life of a prefill worker computed in one attempt; real bytes would be the same for all,
// these tell who wrote them.
struct Origin {
  uint32_t attempt = 0;
  uint64_t incarnation = 0;
};

void FillContent(int request, Origin origin, int block, uint8_t* data) {
  for (size_t i = 0; i < kBlockBytes; i += 8) {
    uint64_t word =
        Mix((uint64_t{static_cast<uint32_t>(request)} << 48) ^ (uint64_t{origin.attempt} << 24) ^
            (origin.incarnation << 36) ^ (static_cast<uint64_t>(block) << 12) ^ i);
    std::memcpy(data + i, &word, 8);
  }
}

bool HasContent(int request, Origin origin, int block, const uint8_t* data) {
  uint8_t expected[kBlockBytes];
  FillContent(request, origin, block, expected);
  return std::memcmp(expected, data, kBlockBytes) == 0;
}

// The blocks of one worker. Last freed, first taken.
class Pool {
 public:
  explicit Pool(SimNetwork* network)
      : network_(network), memory_(kBlocksPerNode * kBlockBytes, kPoison) {
    for (int i = 0; i < kBlocksPerNode; ++i) free_.push_back(i);
  }
  size_t num_free() const { return free_.size(); }
  int Take() {
    int block = free_.back();
    free_.pop_back();
    const uint8_t* data = Data(block);
    if (!std::all_of(data, data + kBlockBytes, [](uint8_t b) { return b == kPoison; })) {
      Fail(network_->Now(), "a free block was written to");
    }
    return block;
  }
  void Free(int block) {
    if (network_->MayWrite(Span(block))) Fail(network_->Now(), "freed under a pending receive");
    if (network_->MayRead(Span(block))) Fail(network_->Now(), "unpinned under a pending send");
    std::memset(Data(block), kPoison, kBlockBytes);
    free_.push_back(block);
  }
  uint8_t* Data(int block) { return memory_.data() + static_cast<size_t>(block) * kBlockBytes; }
  absl::Span<uint8_t> Span(int block) { return absl::MakeSpan(Data(block), kBlockBytes); }

 private:
  SimNetwork* const network_;
  std::vector<uint8_t> memory_;
  std::vector<int> free_;
};

struct SendJob {
  int request = 0;
  uint32_t attempt = 0;
  bool stray = false;  // started by a stale message
  std::vector<int> blocks;
};
struct ReceiveJob {
  int request = 0;
  uint32_t attempt = 0;
  int begin_block = 0;
  std::vector<int> blocks;
  bool delivered = false;
  std::optional<int> aborted_at;  // verified tokens when it was given up
};
struct CachedPrefix {
  std::vector<std::pair<int, Origin>> blocks;  // block, who computed it
};
// A prefill worker's fetch of the decode worker's cached prefix, before it computes.
struct FetchJob {
  int request = 0;
  uint32_t attempt = 0;
  int p = 0;
  int begin_block = 0;
  std::vector<int> blocks;
  std::vector<Origin> prefix;  // who computed the decode worker's cached blocks
  bool complete = false;       // all of it was received
};

// One life of one worker process.
struct Node {
  Node(SimNetwork* network, const std::string& n, Incarnation inc, const TransferOptions& options)
      : name(n), incarnation(inc), clock(network), channel(network->NewChannel(n)), pool(network) {
    agent = TransferAgent::Create(options, incarnation, channel.get(), &clock);
  }
  std::string name;
  Incarnation incarnation;
  NodeClock clock;
  std::unique_ptr<SimChannel> channel;
  Pool pool;
  std::map<TransferId, SendJob> sends;
  std::map<TransferId, ReceiveJob> receives;
  std::map<int, CachedPrefix> cache;  // by request
  std::map<TransferId, FetchJob> fetches;
  std::map<TransferId, int> lends;  // fetches that are being served: the request
  bool paused = false;
  std::unique_ptr<TransferAgent> agent;  // before the channel
};

struct Request {
  bool wanted = false;
  int num_tokens = 0;
  uint32_t attempt = 0;
  bool active = false;  // an attempt is under way
  bool delivered = false;
  int p = -1, d = -1;
  Incarnation p_incarnation, d_incarnation;
  std::string d_address;
  TransferId transfer;
};

class World : public Simulation {
 public:
  World(uint64_t seed, bool trace)
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

  const std::vector<ScriptEntry>& script() const override { return script_; }

  void Run(const Selection& selection) override {
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

 private:
  // --- chance and time ---
  int Pick(int low, int high) { return random_.Pick(low, high); }
  bool Chance(double p) { return random_.Once(p); }
  absl::Duration RandomDelay(absl::Duration max) { return random_.UpTo(max); }
  void After(absl::Duration delay, std::function<void()> action) {
    schedule_.emplace(network_.Now() + delay, std::move(action));
  }
  template <typename... Args>
  void Trace(const Args&... args) {
    if (!trace_) return;
    std::printf("%10.6f %s\n", absl::ToDoubleSeconds(network_.Now() - start_),
                absl::StrCat(args...).c_str());
  }

  void Advance(absl::Time until) {
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
  absl::Time WakeTime(const Node& node) const {
    if (node.paused) return absl::InfiniteFuture();
    return node.channel->has_events() ? network_.Now()
                                      : node.clock.ToReference(node.agent->NextDeadline());
  }

  // --- nodes: 0 and 1 prefill, 2 and 3 decode ---
  std::unique_ptr<Node> NewNode(int i) {
    return std::make_unique<Node>(&network_, absl::StrCat(i < 2 ? "p" : "d", i),
                                  Incarnation(++last_incarnation_), options_);
  }
  void Restart(int i) {
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
  void SetPaused(int i, bool paused) {
    if (!paused) Trace(nodes_[i]->name, " resumes");
    nodes_[i]->paused = paused;
    network_.SetPaused(nodes_[i]->channel.get(), paused);
  }

  // --- the script: each seed has some kinds of faults ---
  void WriteScript() {
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
  void WriteRate(const char* what, double max, double SimFaults::*rate) {
    if (!planned_.Once(0.5)) return;
    const double value = max * planned_.Fraction();
    script_.push_back({absl::StrFormat("%.1f %% of the messages %s", 100 * value, what),
                       [this, rate, value] { faults_.*rate = value; }});
  }
  // One to four faults of one kind, in some of the seeds.
  void WriteTimes(double probability, const std::function<void()>& write) {
    if (!planned_.Once(probability)) return;
    for (int n = planned_.Pick(1, 4); n > 0; --n) write();
  }
  void AddEntry(const std::string& text, std::function<void()> fault) {
    const absl::Duration at = planned_.UpTo(kFaultTime);
    script_.push_back({absl::StrCat(absl::FormatDuration(at), ": ", text),
                       [this, at, text, fault = std::move(fault)] {
                         After(at, [this, text, fault] {
                           Trace(text);
                           fault();
                         });
                       }});
  }
  void Pause(int i, bool suspended, absl::Duration length) {
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
  void StopFaults() {
    Trace("faults stop");
    network_.set_faults(calm_);
    network_.HealAllLinks();
  }

  // --- router ---
  void Plan(int r) {
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
  void EndAttempt(int r, uint32_t attempt, const std::string& why) {
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
  Node* Alive(int i, Incarnation incarnation) {
    Node* node = nodes_[i].get();
    return node->incarnation == incarnation && !node->paused ? node : nullptr;
  }

  // --- decode engine ---
  void ReserveOnDecode(int r, uint32_t attempt) {
    Request& request = requests_[r];
    if (!request.active || request.attempt != attempt) return;
    Node* node = Alive(request.d, request.d_incarnation);
    if (node == nullptr) {
      EndAttempt(r, attempt, "decode worker does not answer");
      return;
    }
    int num_blocks = (request.num_tokens + kBlockTokens - 1) / kBlockTokens;
    int cached = 0;
    auto prefix = node->cache.find(r);
    if (prefix != node->cache.end()) {
      cached = std::min(static_cast<int>(prefix->second.blocks.size()), num_blocks - 1);
    }
    for (auto it = node->cache.begin();
         static_cast<int>(node->pool.num_free()) < num_blocks - cached &&
         it != node->cache.end();) {
      bool in_use = it->first == r;
      for (const auto& [id, job] : node->receives) in_use |= job.request == it->first;
      for (const auto& [id, request] : node->lends) in_use |= request == it->first;
      if (in_use) {
        ++it;
        continue;
      }
      for (auto [block, by] : it->second.blocks) node->pool.Free(block);
      it = node->cache.erase(it);
    }
    if (static_cast<int>(node->pool.num_free()) < num_blocks - cached) {
      EndAttempt(r, attempt, "busy");
      return;
    }
    ReceiveJob job{r, attempt, cached, {}, false, std::nullopt};
    ReceiveSpec spec;
    spec.request = IdOf(r);
    spec.attempt = Attempt(attempt);
    spec.fingerprint = "model";
    spec.begin_token = cached * kBlockTokens;
    spec.end_token = request.num_tokens;
    spec.block_bytes = kBlockBytes;
    spec.block_tokens = kBlockTokens;
    for (int i = cached; i < num_blocks; ++i) {
      job.blocks.push_back(node->pool.Take());
      spec.blocks.push_back(node->pool.Span(job.blocks.back()));
    }
    absl::StatusOr<TransferId> transfer = node->agent->Reserve(spec);
    if (!transfer.ok())
      Fail(network_.Now(), absl::StrCat("Reserve: ", transfer.status().ToString()));
    if (Chance(0.1)) {  // a duplicate of the router's call
      absl::StatusOr<TransferId> again = node->agent->Reserve(spec);
      if (!again.ok() || *again != *transfer) Fail(network_.Now(), "Reserve is not idempotent");
    }
    request.transfer = *transfer;
    if (request.d_address.empty()) request.d_address = node->channel->LocalAddress();
    node->receives[*transfer] = std::move(job);
    Trace("request ", r, " attempt ", attempt, " reserved on ", node->name, " from block ", cached);
    int p = request.p;
    After(RandomDelay(absl::Milliseconds(20)), [this, r, attempt, cached, p] {
      StartPrefill(r, attempt, cached * kBlockTokens, p, /*stray=*/false);
    });
    if (Chance(0.05)) {
      After(RandomDelay(absl::Milliseconds(200)), [this, r, attempt, cached, p] {
        StartPrefill(r, attempt, cached * kBlockTokens, 1 - p, /*stray=*/true);
      });
    }
    if (cancels_ && Chance(0.2)) {
      After(RandomDelay(absl::Milliseconds(300)), [this, r, attempt, id = *transfer] {
        Node* d = Alive(requests_[r].d, requests_[r].d_incarnation);
        if (requests_[r].attempt == attempt && d != nullptr) {
          d->agent->CancelReceive(id, absl::CancelledError("by test"));
        }
      });
    }
  }
  void OnReceived(Node* node, const Received& event) {
    auto it = node->receives.find(event.transfer);
    if (it == node->receives.end() || it->second.delivered) Fail(network_.Now(), "delivered twice");
    ReceiveJob& job = it->second;
    job.delivered = true;
    Trace("request ", job.request, " attempt ", job.attempt, " delivered on ", node->name);
    if (event.request != IdOf(job.request) || event.attempt.value != job.attempt ||
        event.first.token != job.request * 1000 + static_cast<int>(job.attempt)) {
      Fail(network_.Now(), "delivered with another request's first token");
    }
    if (!OriginOf(node, event.transfer, job, job.blocks.size()).has_value()) {
      Fail(network_.Now(), "foreign bytes in a delivered block");
    }
    delivered_.insert(event.transfer);
    for (int i = 0; i < job.begin_block; ++i) {
      auto [block, by] = node->cache.at(job.request).blocks.at(i);
      if (!HasContent(job.request, by, i, node->pool.Data(block))) {
        Fail(network_.Now(), "foreign bytes in the cached prefix");
      }
    }
    Request& request = requests_[job.request];
    if (request.attempt == job.attempt && request.active) {
      request.delivered = true;
      request.active = false;
    }
  }
  void OnReceiveAborted(Node* node, const ReceiveAborted& event) {
    auto it = node->receives.find(event.transfer);
    if (it == node->receives.end()) {
      if (!node->fetches.contains(event.transfer)) Fail(network_.Now(), "aborted after its end");
      return;
    }
    ReceiveJob& job = it->second;
    if (job.delivered || job.aborted_at.has_value()) Fail(network_.Now(), "aborted twice");
    job.aborted_at = event.verified_tokens;
    const size_t num_kept = NumVerified(job, event.verified_tokens);
    for (size_t i = 0; i < num_kept; ++i) {
      if (network_.MayWrite(node->pool.Span(job.blocks[i]))) {
        Fail(network_.Now(), "a verified block is still being received into");
      }
    }
    if (!OriginOf(node, event.transfer, job, num_kept).has_value()) {
      Fail(network_.Now(), "foreign bytes in a verified block of an aborted transfer");
    }
  }
  static size_t NumVerified(const ReceiveJob& job, int verified_tokens) {
    const int num_verified = verified_tokens / kBlockTokens - job.begin_block;
    return static_cast<size_t>(std::clamp<int>(num_verified, 0, job.blocks.size()));
  }
  void OnReceiveEnded(Node* node, const ReceiveEnded& event) {
    auto it = node->receives.find(event.transfer);
    if (it == node->receives.end()) Fail(network_.Now(), "a receive ended twice");
    ReceiveJob job = std::move(it->second);
    node->receives.erase(it);
    Trace("request ", job.request, " attempt ", job.attempt, " receive ended on ", node->name, ": ",
          event.status.ToString(), ", verified ", event.verified_tokens);
    if (event.status.ok() != job.delivered) Fail(network_.Now(), "ended OK without delivery");
    size_t num_kept = NumVerified(job, event.verified_tokens);
    if (job.aborted_at.value_or(event.verified_tokens) != event.verified_tokens) {
      Fail(network_.Now(), "what was verified at the abort was not final");
    }
    std::optional<Origin> origin = OriginOf(node, event.transfer, job, num_kept);
    if (!origin.has_value()) {
      Fail(network_.Now(), "foreign bytes in a verified block of an aborted transfer");
    }
    CachedPrefix& cache = node->cache[job.request];
    for (size_t i = 0; i < job.blocks.size(); ++i) {
      int position = job.begin_block + static_cast<int>(i);
      if (i < num_kept && !job.delivered && static_cast<int>(cache.blocks.size()) == position) {
        cache.blocks.push_back({job.blocks[i], *origin});
      } else {
        node->pool.Free(job.blocks[i]);
      }
    }
    if (cache.blocks.empty()) node->cache.erase(job.request);
    if (!event.status.ok()) EndAttempt(job.request, job.attempt, "receive failed");
    if (options_.max_tombstones == kManyTombstones && Chance(0.1)) {
      After(RandomDelay(absl::Seconds(1)),
            [this, d = requests_[job.request].d, inc = node->incarnation, r = job.request,
             attempt = job.attempt] { ReserveAgain(d, inc, r, attempt); });
    }
  }
  // A stale Reserve of the router: that attempt is over.
  void ReserveAgain(int d, Incarnation incarnation, int r, uint32_t attempt) {
    Node* node = Alive(d, incarnation);
    if (node == nullptr) return;
    std::vector<uint8_t> scratch(kBlockBytes);
    ReceiveSpec spec;
    spec.request = IdOf(r);
    spec.attempt = Attempt(attempt);
    spec.fingerprint = "model";
    spec.end_token = kBlockTokens;
    spec.block_bytes = kBlockBytes;
    spec.block_tokens = kBlockTokens;
    spec.blocks = {absl::MakeSpan(scratch)};
    if (node->agent->Reserve(spec).ok())
      Fail(network_.Now(), "reserved for an attempt that is over");
  }
  // The one life of a prefill worker that computed the first blocks of the transfer, all of them.
  std::optional<Origin> OriginOf(Node* node, TransferId transfer, const ReceiveJob& job,
                                 size_t num_blocks) {
    if (num_blocks == 0) return Origin();
    for (Incarnation sender : senders_[transfer]) {
      Origin origin{job.attempt, sender.value};
      bool all = true;
      for (size_t i = 0; i < num_blocks; ++i) {
        all &= HasContent(job.request, origin, job.begin_block + static_cast<int>(i),
                          node->pool.Data(job.blocks[i]));
      }
      if (all) return origin;
    }
    return std::nullopt;
  }

  // --- prefill engine ---
  void StartPrefill(int r, uint32_t attempt, int begin_token, int p, bool stray) {
    Request& request = requests_[r];
    if (!request.active || request.attempt != attempt) return;
    Node* node = Alive(p, stray ? nodes_[p]->incarnation : request.p_incarnation);
    int num_blocks = (request.num_tokens + kBlockTokens - 1) / kBlockTokens;
    if (node == nullptr || static_cast<int>(node->pool.num_free()) < num_blocks) {
      if (!stray) EndAttempt(r, attempt, "prefill worker is busy or silent");
      return;
    }
    SendSpec spec;
    spec.transfer = request.transfer;
    spec.request = IdOf(r);
    spec.attempt = Attempt(attempt);
    spec.peer_address = request.d_address;
    spec.peer_incarnation = request.d_incarnation;
    spec.fingerprint = "model";
    spec.begin_token = begin_token;
    spec.end_token = request.num_tokens;
    spec.block_bytes = kBlockBytes;
    spec.block_tokens = kBlockTokens;
    absl::Status status = node->agent->StartSend(spec);
    if (!status.ok()) Fail(network_.Now(), absl::StrCat("StartSend: ", status.ToString()));
    Trace("request ", r, " attempt ", attempt, " computed on ", node->name,
          stray ? ", astray" : "");
    SendJob job{r, attempt, stray, {}};
    for (int i = 0; i < num_blocks; ++i) job.blocks.push_back(node->pool.Take());
    node->sends[spec.transfer] = std::move(job);
    senders_[spec.transfer].push_back(node->incarnation);
    if (!Chance(0.7) || !StartFetch(node, p, r, attempt, begin_token / kBlockTokens)) {
      StartComputing(node, p, spec.transfer);
    }
    if (cancels_ && Chance(0.2)) {
      After(RandomDelay(absl::Milliseconds(400)),
            [this, p, inc = node->incarnation, id = spec.transfer] {
              Node* n = Alive(p, inc);
              if (n != nullptr) n->agent->CancelSend(id, absl::CancelledError("by test"));
            });
    }
  }
  void StartComputing(Node* node, int p, TransferId id) {
    After(RandomDelay(absl::Milliseconds(200)),
          [this, p, inc = node->incarnation, id] { ComputeChunk(p, inc, id, 0); });
  }

  // --- prefix fetch ---
  // Asks the decode worker for its cached prefix, or a part of it. Sometimes wrongly: for more than
  // the prefix, or with a grant that is none.
  bool StartFetch(Node* node, int p, int r, uint32_t attempt, int cached) {
    const Request& request = requests_[r];
    FetchJob job{r, attempt, p, 0, {}, {}, false};
    const Node* d = nodes_[request.d].get();
    if (d->incarnation == request.d_incarnation && d->cache.contains(r)) {
      for (const auto& [block, by] : d->cache.at(r).blocks) job.prefix.push_back(by);
      job.prefix.resize(std::min<size_t>(job.prefix.size(), static_cast<size_t>(cached)));
    }
    const int num_blocks = (request.num_tokens + kBlockTokens - 1) / kBlockTokens;
    const bool too_far = Chance(0.05) && cached < num_blocks - 1;
    const int end_block = too_far ? Pick(cached + 1, num_blocks - 1) : cached;
    if (end_block == 0) return false;
    job.begin_block = Pick(0, end_block - 1);
    if (static_cast<int>(node->pool.num_free()) < end_block - job.begin_block) return false;
    FetchSpec spec;
    spec.into.request = IdOf(r);
    spec.into.attempt = Attempt(attempt);
    spec.into.fingerprint = "model";
    spec.into.begin_token = job.begin_block * kBlockTokens;
    spec.into.end_token = end_block * kBlockTokens;
    spec.into.block_bytes = kBlockBytes;
    spec.into.block_tokens = kBlockTokens;
    for (int i = job.begin_block; i < end_block; ++i) {
      job.blocks.push_back(node->pool.Take());
      spec.into.blocks.push_back(node->pool.Span(job.blocks.back()));
    }
    spec.grant = request.transfer;
    if (Chance(0.1)) spec.grant.bytes[0] ^= 1;
    spec.peer_address = request.d_address;
    spec.peer_incarnation = request.d_incarnation;
    absl::StatusOr<TransferId> into = node->agent->Fetch(spec);
    if (!into.ok()) {  // this worker has fetched for the attempt before, for a stale message
      for (int block : job.blocks) node->pool.Free(block);
      return false;
    }
    Trace("request ", r, " attempt ", attempt, " fetches blocks ", job.begin_block, " to ",
          end_block, " for ", node->name, too_far ? ", too far" : "");
    node->fetches[*into] = std::move(job);
    if (cancels_ && Chance(0.2)) {
      After(RandomDelay(absl::Milliseconds(50)), [this, p, inc = node->incarnation, id = *into] {
        if (Node* n = Alive(p, inc)) n->agent->CancelReceive(id, absl::CancelledError("by test"));
      });
    }
    return true;
  }
  void OnFetchRequested(Node* node, const FetchRequested& event) {
    auto it = node->receives.find(event.grant);
    if (it == node->receives.end()) Fail(network_.Now(), "asked to serve a grant that is none");
    const ReceiveJob& job = it->second;
    if (node->lends.contains(event.send.transfer)) Fail(network_.Now(), "asked to serve twice");
    Trace("request ", job.request, " attempt ", job.attempt, " prefix lent by ", node->name);
    absl::Status status = node->agent->StartSend(event.send);
    // A fetch that was served once before, and is over, does not come again.
    if (!served_.insert(event.send.transfer).second) Fail(network_.Now(), "asked to serve again");
    if (!status.ok()) Fail(network_.Now(), absl::StrCat("lending: ", status.ToString()));
    node->lends[event.send.transfer] = job.request;
    if (Chance(0.1)) {  // the engine does not want to
      node->agent->CancelSend(event.send.transfer, absl::ResourceExhaustedError("by test"));
      return;
    }
    // Whatever the agent lets pass: it has said that these blocks are there.
    std::vector<absl::Span<const uint8_t>> spans;
    for (int i = event.send.begin_token / kBlockTokens; i < event.send.end_token / kBlockTokens;
         ++i) {
      spans.push_back(node->pool.Span(i < job.begin_block
                                          ? node->cache.at(job.request).blocks.at(i).first
                                          : job.blocks.at(i - job.begin_block)));
    }
    const TransferId into = event.send.transfer;
    status = node->agent->Offer(into, event.send.begin_token, event.send.end_token, spans);
    if (!status.ok()) Fail(network_.Now(), absl::StrCat("lending: ", status.ToString()));
    status = node->agent->FinishSend(into, FirstToken());
    if (!status.ok()) Fail(network_.Now(), absl::StrCat("lending: ", status.ToString()));
  }
  void OnFetchEnded(Node* node, const ReceiveEnded& event) {
    FetchJob job = std::move(node->fetches.at(event.transfer));
    node->fetches.erase(event.transfer);
    Trace("request ", job.request, " attempt ", job.attempt, " fetch ended on ", node->name, ": ",
          event.status.ToString(), ", verified ", event.verified_tokens);
    if (event.status.ok() != job.complete) Fail(network_.Now(), "a fetch ended OK by halves");
    for (size_t i = 0; i < job.blocks.size(); ++i) {
      const int position = job.begin_block + static_cast<int>(i);
      if ((position + 1) * kBlockTokens <= event.verified_tokens) {
        if (static_cast<size_t>(position) >= job.prefix.size()) {
          Fail(network_.Now(), "fetched what the decode worker has not");
        }
        if (!HasContent(job.request, job.prefix[position], position,
                        node->pool.Data(job.blocks[i]))) {
          Fail(network_.Now(), "foreign bytes in a fetched block");
        }
      }
      node->pool.Free(job.blocks[i]);
    }
    for (const auto& [id, send] : node->sends) {
      if (send.request != job.request || send.attempt != job.attempt) continue;
      StartComputing(node, job.p, id);
      return;
    }
  }

  void ComputeChunk(int p, Incarnation incarnation, TransferId id, int begin_block) {
    Node* node = nodes_[p].get();
    if (node->incarnation != incarnation) return;
    if (node->paused) {  // the engine stands still with its process, and goes on as a zombie
      After(absl::Milliseconds(100), [=, this] { ComputeChunk(p, incarnation, id, begin_block); });
      return;
    }
    auto it = node->sends.find(id);
    if (it == node->sends.end()) return;
    SendJob& job = it->second;
    int num_tokens = requests_[job.request].num_tokens;
    int num_blocks = static_cast<int>(job.blocks.size());
    int end_block = std::min(num_blocks, begin_block + Pick(1, 4));
    std::vector<absl::Span<const uint8_t>> spans;
    for (int i = begin_block; i < end_block; ++i) {
      FillContent(job.request, Origin{job.attempt, incarnation.value}, i,
                  node->pool.Data(job.blocks[i]));
      spans.push_back(node->pool.Span(job.blocks[i]));
    }
    absl::Status status =
        node->agent->Offer(id, begin_block * kBlockTokens,
                           std::min(num_tokens, end_block * kBlockTokens), std::move(spans));
    if (absl::IsNotFound(status)) return;  // over; its end is on the way
    if (!status.ok()) Fail(network_.Now(), absl::StrCat("Offer: ", status.ToString()));
    if (end_block < num_blocks) {
      After(RandomDelay(absl::Milliseconds(100)),
            [=, this] { ComputeChunk(p, incarnation, id, end_block); });
      return;
    }
    FirstToken first;
    first.token = job.request * 1000 + static_cast<int>(job.attempt);
    status = node->agent->FinishSend(id, first);
    if (!status.ok()) Fail(network_.Now(), absl::StrCat("FinishSend: ", status.ToString()));
  }
  void OnSendEnded(Node* node, const SendEnded& event) {
    auto it = node->sends.find(event.transfer);
    if (it == node->sends.end()) Fail(network_.Now(), "a send ended twice");
    SendJob job = std::move(it->second);
    node->sends.erase(it);
    Trace("request ", job.request, " attempt ", job.attempt, " send ended on ", node->name, ": ",
          event.status.ToString());
    for (int block : job.blocks) node->pool.Free(block);
    bool delivered = delivered_.contains(event.transfer);
    if (event.status.ok() && !delivered) Fail(network_.Now(), "committed and not delivered");
    if (event.status.ok() && !committed_.insert(event.transfer).second) {
      Fail(network_.Now(), "committed twice");
    }
    // Its own decode worker, with no other sender about and every closed transfer remembered, knows
    // better.
    const Request& request = requests_[job.request];
    bool may_refuse = senders_[event.transfer].size() > 1 || request.attempt != job.attempt ||
                      nodes_[request.d]->incarnation != request.d_incarnation ||
                      options_.max_tombstones != kManyTombstones;
    if (delivered && !may_refuse && absl::StrContains(event.status.message(), "refused")) {
      Fail(network_.Now(), "refused after it was delivered");
    }
    if (!event.status.ok() && !job.stray) EndAttempt(job.request, job.attempt, "send failed");
  }

  void PollNode(Node* node) {
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

  // --- the end ---
  bool Settled() const {
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
  void CheckEnd() {
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

  static RequestId IdOf(int r) {
    RequestId id;
    id.bytes[0] = static_cast<uint8_t>(r + 1);
    return id;
  }

  const bool trace_;
  testing::Chance planned_;  // for the script
  testing::Chance random_;   // for the run
  SimNetwork network_;
  TransferOptions options_;
  SimFaults calm_, faults_;
  absl::Time start_;
  std::vector<ScriptEntry> script_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Request> requests_;
  std::multimap<absl::Time, std::function<void()>> schedule_;
  std::map<TransferId, std::vector<Incarnation>> senders_;
  std::set<TransferId> delivered_;
  std::set<TransferId> committed_;
  std::set<TransferId> served_;  // fetches
  uint64_t last_incarnation_ = 100;
  bool cancels_ = false;
};

}  // namespace

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
