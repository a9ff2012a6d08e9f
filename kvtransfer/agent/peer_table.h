// The processes that this one exchanges KV with: one endpoint and one liveness record for each life
// (incarnation). Owned by the transfer agent; transfer thread only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvtransfer/channel/kv_channel.h"
#include "kvtransfer/handoff/liveness.h"
#include "kvtransfer/handoff/messages.h"

namespace sluice {

class PeerTable {
 public:
  struct Options {
    absl::Duration heartbeat_interval;
    absl::Duration peer_timeout;
    size_t max_peers = 0;
  };
  struct Dead {
    Incarnation peer;
    absl::Status reason;
  };

  PeerTable(const Options& options, Incarnation self, KvChannel* channel)
      : options_(options), self_(self), channel_(channel) {}

  // The endpoint to that life of a process, connecting if there is none. RESOURCE_EXHAUSTED when
  // all max_peers endpoints are in use.
  absl::StatusOr<PeerId> Ensure(Incarnation peer, const std::string& address);
  // 0 when there is none.
  PeerId Endpoint(Incarnation peer) const;
  // Ends the endpoint; pending operations on it end by their own events.
  void Remove(Incarnation peer);
  // Every endpoint that may still carry something of that peer: its own, and those it was moved
  // away from that others use.
  std::vector<PeerId> Endpoints(Incarnation peer) const;
  // Whose endpoint it is, or was: several lives behind one address share it.
  std::vector<Incarnation> Owners(PeerId endpoint) const;

  // A transfer with the peer begins or ends: heartbeats go out, and its silence counts, in between.
  void Attach(Incarnation peer, absl::Time now);
  void Detach(Incarnation peer);
  void Heard(Incarnation peer, absl::Time now);
  void Forgive(absl::Duration duration);

  // Sends due heartbeats and names the peers that were silent for too long.
  std::vector<Dead> Tick(absl::Time now);
  absl::Time NextDeadline() const;

  // Best effort: what is lost is repeated by the state machines.
  void Send(Incarnation peer, const TransferId& transfer, handoff::Body body);
  void SendTo(PeerId endpoint, Incarnation peer, const TransferId& transfer, handoff::Body body);

 private:
  struct Peer {
    PeerId endpoint;
    std::string address;
    handoff::Liveness liveness;
    std::vector<PeerId>
        former;  // shared with others when it was moved; what is pending there goes on
  };

  bool EvictIdle();

  const Options options_;
  const Incarnation self_;
  KvChannel* const channel_;
  std::map<Incarnation, Peer> peers_;  // ordered, so that a simulation can be replayed
};

}  // namespace sluice
