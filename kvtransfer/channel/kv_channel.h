// Moves described bytes between processes: small headers, and payloads that the receiver places.
// Implementations: ucx_channel (shared memory, TCP, RDMA) and sim_channel (seeded faults, in one
// process). One thread owns a channel; only Wake() may be called from others.
//
// Push with pull safety: a sender announces header and payload, the receiver sees the header first
// and then chooses where the payload goes (Receive) or refuses it (Drop). Nobody else can write a
// process's memory. Nothing is promised about order or delivery: the handoff protocol numbers and
// acknowledges.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace sluice {

// An endpoint to one address in one life. 0 is none.
using PeerId = StrongId<struct PeerIdTag, uint64_t>;
// An announced payload that waits for Receive or Drop.
using PayloadId = StrongId<struct PayloadIdTag, uint64_t>;
// The caller's name for a pending send or receive.
using OperationId = StrongId<struct OperationIdTag, uint64_t>;

struct PeerTransport {
  PeerId id;              // the endpoint; a peer that was restarted has another one
  std::string peer;       // for people
  std::string transport;  // "shm", "tcp", "rdma", "self", "sim"
  std::string lanes;      // what UCX printed, for logs
  uint64_t bytes_sent = 0;
  uint64_t bytes_received = 0;
  absl::Duration busy_sending;  // time with at least one payload pending
  absl::Duration busy_receiving;
};

struct ChannelEvent {
  enum class Kind {
    kMessage,      // header (always whole); payload announced if payload_bytes > 0
    kSendDone,     // the source may be reused (status says whether it was sent)
    kReceiveDone,  // our receive ended, well or not; the destination is ours again
    kPeerFailed,   // the endpoint is unusable; pending operations still end by their own events
  };
  Kind kind = Kind::kMessage;
  PeerId peer;  // kMessage: the endpoint to answer through, or 0 if none is known yet
  std::string header;
  PayloadId payload;
  uint64_t payload_bytes = 0;
  OperationId operation;
  absl::Status status;
};

class KvChannel {
 public:
  virtual ~KvChannel() = default;

  // What a peer needs for Connect. A channel that had to start anew has another one, and all its
  // endpoints have failed; so ask when it is sent.
  virtual std::string LocalAddress() const = 0;
  // Cheap and idempotent per address; the connection may still be under way.
  virtual absl::StatusOr<PeerId> Connect(const std::string& address) = 0;
  // Gives the endpoint up at once. What is pending on it, in both directions, still ends by its own
  // event, soon and with an error. Unknown peers are ignored.
  virtual void Disconnect(PeerId peer) = 0;

  // Sends a header (1 to max_header_bytes bytes) and the concatenation of `payload`, perhaps empty.
  // The spans stay as they are until kSendDone for `operation`, which always comes, and mapped for
  // the channel's life: when a send to a peer that was given up has ended with an error, its memory
  // may be written again, but it may still be read. An error here means no event.
  virtual absl::Status Send(PeerId peer, std::string header,
                            std::vector<absl::Span<const uint8_t>> payload,
                            OperationId operation) = 0;
  // Takes an announced payload into `destination` (total size == payload_bytes). kReceiveDone
  // always comes; until then the memory is the channel's. An error here means no event, and the
  // payload is gone.
  virtual absl::Status Receive(PayloadId payload, std::vector<absl::Span<uint8_t>> destination,
                               OperationId operation) = 0;
  // Refuses an announced payload. Each payload is received or dropped exactly once.
  virtual void Drop(PayloadId payload) = 0;

  // Progresses and appends events. Never waits. Returns whether anything happened.
  virtual bool Poll(std::vector<ChannelEvent>* events) = 0;
  // Sleeps until something arrives, Wake() is called or `timeout` passes. May return early, and may
  // progress: what happens then is told by the next Poll.
  virtual void WaitForActivity(absl::Duration timeout) = 0;
  // Ends a WaitForActivity. Any thread.
  virtual void Wake() = 0;

  virtual size_t max_header_bytes() const = 0;
  virtual std::vector<PeerTransport> Transports() const = 0;
};

}  // namespace sluice
