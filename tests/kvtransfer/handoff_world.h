// Real transfer agents of two prefill and two decode workers over a faulty network, on virtual
// time. Around the agents are fake engines with small LIFO block pools, which give the worst reuse
// distance: what one request frees the next one takes at once. A router makes attempts until each
// request is delivered; now and then a stale message of it starts the same attempt on a second
// prefill worker, or reserves an attempt that is over. Before it computes, a prefill worker often
// fetches the prefix that the decode worker has cached from an earlier attempt.
//
// Faults: messages are lost, doubled, delayed, reordered, damaged; receives fail or hang; links are
// cut one way; processes crash, are paused (their clock goes on) or suspended (it does not); clocks
// jump and run at their own rate.
//
// Checked all the time:
//   - a delivered sequence holds exactly the bytes that one life of one worker computed for
//     (request, attempt, position), and so does what an aborted transfer reports as verified;
//   - delivery happens once, and only with every block covered;
//   - a send that ended well was delivered, and one that was delivered is not refused;
//   - what an aborted transfer reports as verified at once is final;
//   - a block reported free is not being written (decode) nor read (prefill) by the network;
//   - nobody writes to a free block (poison is intact when it is taken again);
//   - an attempt that is over is not reserved again;
//   - a prefill worker that fetches gets the decode worker's cached prefix and nothing else,
//     whatever it asks for, and a fetch is served once.
// And when the faults have stopped: every request is delivered, every transfer has ended, every
// block is free or cached, and no agent wants to wake up.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/sim_channel.h"
#include "tests/kvtransfer/handoff_node.h"
#include "tests/sim/chance.h"
#include "tests/sim/seed_runner.h"

namespace sluice::testing {

inline constexpr int kNumRequests = 16;
inline constexpr int kManyTombstones = 1000;  // more than a run has transfers
inline constexpr absl::Duration kFaultTime = absl::Seconds(8);
inline constexpr absl::Duration kSettleTime = absl::Seconds(120);

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

// The workers, the router that asks them, and the network that fails them. What each does is in a
// file of its own: handoff_world_faults.cc (the script of a seed), handoff_world_decode.cc and
// handoff_world_prefill.cc (the engines), and handoff_world.cc (time, the router, the end).
class World : public Simulation {
 public:
  World(uint64_t seed, bool trace);

  const std::vector<ScriptEntry>& script() const override { return script_; }

  void Run(const Selection& selection) override;

 private:
  // --- chance and time ---
  int Pick(int low, int high) { return random_.Pick(low, high); }
  bool Chance(double p) { return random_.Once(p); }
  absl::Duration RandomDelay(absl::Duration max) { return random_.UpTo(max); }
  void After(absl::Duration delay, std::function<void()> action);
  template <typename... Args>
  void Trace(const Args&... args) {
    if (!trace_) return;
    std::printf("%10.6f %s\n", absl::ToDoubleSeconds(network_.Now() - start_),
                absl::StrCat(args...).c_str());
  }

  void Advance(absl::Time until);
  absl::Time WakeTime(const Node& node) const;

  // --- nodes: 0 and 1 prefill, 2 and 3 decode ---
  std::unique_ptr<Node> NewNode(int i);
  void Restart(int i);
  void SetPaused(int i, bool paused);

  // --- the script: each seed has some kinds of faults ---
  void WriteScript();
  void WriteRate(const char* what, double max, double SimFaults::*rate);
  // One to four faults of one kind, in some of the seeds.
  void WriteTimes(double probability, const std::function<void()>& write);
  void AddEntry(const std::string& text, std::function<void()> fault);
  void Pause(int i, bool suspended, absl::Duration length);
  void StopFaults();

  // --- router ---
  void Plan(int r);
  void EndAttempt(int r, uint32_t attempt, const std::string& why);
  Node* Alive(int i, Incarnation incarnation);

  // --- decode engine ---
  void ReserveOnDecode(int r, uint32_t attempt);
  void OnReceived(Node* node, const Received& event);
  void OnReceiveAborted(Node* node, const ReceiveAborted& event);
  static size_t NumVerified(const ReceiveJob& job, int verified_tokens);
  void OnReceiveEnded(Node* node, const ReceiveEnded& event);
  // A stale Reserve of the router: that attempt is over.
  void ReserveAgain(int d, Incarnation incarnation, int r, uint32_t attempt);
  // The one life of a prefill worker that computed the first blocks of the transfer, all of them.
  std::optional<Origin> OriginOf(Node* node, TransferId transfer, const ReceiveJob& job,
                                 size_t num_blocks);

  // --- prefill engine ---
  void StartPrefill(int r, uint32_t attempt, int begin_token, int p, bool stray);
  void StartComputing(Node* node, int p, TransferId id);

  // --- prefix fetch ---
  // Asks the decode worker for its cached prefix, or a part of it. Sometimes wrongly: for more than
  // the prefix, or with a grant that is none.
  bool StartFetch(Node* node, int p, int r, uint32_t attempt, int cached);
  void OnFetchRequested(Node* node, const FetchRequested& event);
  void OnFetchEnded(Node* node, const ReceiveEnded& event);

  void ComputeChunk(int p, Incarnation incarnation, TransferId id, int begin_block);
  void OnSendEnded(Node* node, const SendEnded& event);

  void PollNode(Node* node);

  // --- the end ---
  bool Settled() const;
  void CheckEnd();

  static RequestId IdOf(int r);

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

SimulationProgram HandoffSimulation();

}  // namespace sluice::testing
