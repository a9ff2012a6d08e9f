// What the two halves of a transfer agent share. Owned by the agent; transfer thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kvtransfer/agent/peer_table.h"
#include "kvtransfer/agent/transfer_agent.h"

namespace sluice {

struct AgentCore {
  AgentCore(const TransferOptions& opts, Incarnation own, KvChannel* chan, const Clock* time)
      : options(opts),
        self(own),
        channel(chan),
        clock(time),
        peers({opts.heartbeat_interval, opts.peer_timeout, static_cast<size_t>(opts.max_peers)},
              own, chan) {}

  OperationId NewOperation() { return OperationId(++last_operation); }
  // A peer that must be given up. Done by the agent after the current step, because it steps every
  // transfer with that peer.
  void Condemn(Incarnation peer, absl::Status reason) {
    condemned.push_back({peer, std::move(reason)});
  }

  const TransferOptions options;
  const Incarnation self;
  KvChannel* const channel;
  const Clock* const clock;
  PeerTable peers;
  TransferStats stats;
  std::vector<TransferEvent> events;  // not yet handed to the owner
  std::vector<PeerTable::Dead> condemned;
  uint64_t last_operation = 0;  // 0 is for control messages, whose end is of no interest
};

}  // namespace sluice
