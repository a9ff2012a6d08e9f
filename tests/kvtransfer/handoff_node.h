// One simulated worker of the handoff simulation: its agent, its pool of blocks, and what it is
// about to do with them. What blocks hold tells who computed them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/sim_channel.h"
#include "tests/sim/node_clock.h"

namespace sluice::testing {

inline constexpr int kBlockTokens = 4;
inline constexpr size_t kBlockBytes = 192;
inline constexpr uint8_t kPoison = 0xdd;
inline constexpr int kBlocksPerNode = 20;

// Ends the run: a rule was broken at `now`.
[[noreturn]] void Fail(absl::Time now, const std::string& what);
// Spreads the bits of a number.
uint64_t Mix(uint64_t x);

// What one life of a prefill worker computed in one attempt; real bytes would be the same for all,
// these tell who wrote them.
struct Origin {
  uint32_t attempt = 0;
  uint64_t incarnation = 0;
};
void FillContent(int request, Origin origin, int block, uint8_t* data);
bool HasContent(int request, Origin origin, int block, const uint8_t* data);

// The blocks of one worker. Last freed, first taken.
class Pool {
 public:
  explicit Pool(SimNetwork* network)
      : network_(network), memory_(kBlocksPerNode * kBlockBytes, kPoison) {
    for (int i = 0; i < kBlocksPerNode; ++i) free_.push_back(i);
  }
  size_t num_free() const { return free_.size(); }
  // Fails when somebody has written to it while it was free.
  int Take();
  // Fails while the network may still read or write it.
  void Free(int block);
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

}  // namespace sluice::testing
