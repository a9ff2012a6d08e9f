// All KV transfers of one process, in both directions: the handoff state machines
// (kvtransfer/handoff) bound to a channel (kvtransfer/channel) and to memory that the owner lends.
// One thread (the transfer thread) calls everything here. docs/handoff.md explains the protocol.
//
// Memory contract.
//  Sending:   the spans given to Offer stay readable until SendEnded is reported for the transfer.
//  Receiving: the spans given to Reserve stay writable until ReceiveEnded is reported. Received
//             means complete and verified; after it the agent never writes to them again.
//             Cancelling does not end a receive: only the report does, and it comes only when no
//             receive is pending.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/ids.h"
#include "kvtransfer/channel/kv_channel.h"
#include "kvtransfer/handoff/messages.h"

namespace sluice {

struct TransferOptions {
  absl::Duration heartbeat_interval = absl::Milliseconds(200);
  absl::Duration peer_timeout = absl::Seconds(2);  // no sign of life: the peer is dead
  // A transfer without an answer, or without progress of what is on its way, ends after this.
  absl::Duration lease = absl::Seconds(5);
  absl::Duration resend_interval = absl::Milliseconds(300);  // Bind, Final, Cancel until answered
  uint64_t window_bytes = 32 << 20;                          // per transfer, unacknowledged
  // Per transfer, checksummed and not yet out of the channel's hands: few, so that the channel
  // finds in the cache what the checksum has read. Two messages are allowed in any case.
  uint64_t ahead_bytes = 1 << 20;
  // Smaller blocks travel together up to this; a block of more than half of it goes alone, because
  // UCX over TCP copies what is not in one piece (bench/handoff_bench).
  uint64_t target_message_bytes = 512 << 10;
  int max_transfers = 4096;    // in each direction; more are refused
  int max_tombstones = 16384;  // closed transfers remembered, to refuse stragglers
  int max_peers = 4096;        // endpoints kept; idle ones go first
  // A fetch of a prefix that is not answered, or makes no progress, ends after this: the prompt
  // waits for it. Zero: owners do not fetch.
  absl::Duration fetch_patience = absl::Seconds(1);
};

struct SendSpec {
  TransferId transfer;
  RequestId request;
  Attempt attempt;
  std::string peer_address;  // of the decode worker's channel
  Incarnation peer_incarnation;
  std::string fingerprint;  // must equal the receiver's
  int begin_token = 0;      // the decode worker's cached prefix; multiple of block_tokens
  int end_token = 0;        // number of tokens of the sequence
  uint64_t block_bytes = 0;
  int block_tokens = 64;
};

struct ReceiveSpec {
  RequestId request;
  Attempt attempt;
  std::string fingerprint;
  int begin_token = 0;
  int end_token = 0;
  uint64_t block_bytes = 0;
  int block_tokens = 64;
  std::vector<absl::Span<uint8_t>>
      blocks;  // ceil((end - begin) / block_tokens) spans of block_bytes
};

// Asks a decode worker for blocks of the prefix that it has cached for a reservation of this
// request and attempt.
struct FetchSpec {
  ReceiveSpec into;          // its begin and end are multiples of block_tokens
  TransferId grant;          // the decode worker's transfer: the capability
  std::string peer_address;  // of the decode worker's channel
  Incarnation peer_incarnation;
};

// Reports, in order of occurrence.
struct SendEnded {  // the blocks may be unpinned
  TransferId transfer;
  RequestId request;
  Attempt attempt;
  absl::Status status;      // OK: committed by the decode worker
  uint64_t bytes = 0;       // acknowledged by the receiver
  absl::Duration duration;  // first Offer -> end; zero without one
};
struct Received {  // complete and verified
  TransferId transfer;
  RequestId request;
  Attempt attempt;
  FirstToken first;
  uint64_t bytes = 0;
  absl::Duration duration;  // first offer -> verified
  absl::Duration exposed;   // Final received (or prefill's end) -> verified
  bool fetched = false;     // asked for by Fetch; no answer begins with it, `first` says nothing
};
// Given up, while receives are pending: ReceiveEnded follows. The verified tokens are final, and
// nothing writes to their blocks any more.
struct ReceiveAborted {
  TransferId transfer;
  RequestId request;
  Attempt attempt;
  int verified_tokens = 0;  // as in ReceiveEnded
};
// No receive is pending; the blocks may be freed (after Received: they are handed over).
struct ReceiveEnded {
  TransferId transfer;
  RequestId request;
  Attempt attempt;
  absl::Status status;  // OK after Received
  int verified_tokens =
      0;  // contiguous from begin_token, in tokens counted from the sequence's start
};
// A prefill worker wants blocks of the cached prefix of a live reservation of ours. The agent has
// checked capability, lives, range and geometry; the owner answers with StartSend(send), after
// which it offers and finishes, or cancels.
struct FetchRequested {
  TransferId grant;  // the reservation's transfer
  SendSpec send;
};
using TransferEvent =
    std::variant<SendEnded, Received, ReceiveAborted, ReceiveEnded, FetchRequested>;

struct TransferStats {
  uint64_t messages_refused = 0;  // stale incarnation, unknown or closed transfer, bad fingerprint
  uint64_t checksum_failures = 0;
  uint64_t resends = 0;
  int sends_in_flight = 0;
  int receives_in_flight = 0;
};

class TransferAgent {
 public:
  virtual ~TransferAgent() = default;

  // `channel` and `clock` must outlive the agent.
  static std::unique_ptr<TransferAgent> Create(const TransferOptions& options, Incarnation self,
                                               KvChannel* channel, const Clock* clock);

  // Prefill side. RESOURCE_EXHAUSTED at max_transfers; ALREADY_EXISTS; INVALID_ARGUMENT.
  virtual absl::Status StartSend(const SendSpec& spec) = 0;
  // Blocks for tokens [begin, end); begin is a multiple of block_tokens; end too unless it is
  // end_token. Blocks below spec.begin_token are ignored. A partial last block must have a zeroed
  // tail. NOT_FOUND when the transfer is over (its SendEnded tells why); ALREADY_EXISTS when tokens
  // were offered before.
  virtual absl::Status Offer(TransferId transfer, int begin, int end,
                             std::vector<absl::Span<const uint8_t>> blocks) = 0;
  // All offers were made (FAILED_PRECONDITION if blocks are missing). SendEnded follows when the
  // receiver committed.
  virtual absl::Status FinishSend(TransferId transfer, const FirstToken& first) = 0;
  virtual void CancelSend(TransferId transfer, absl::Status reason) = 0;

  // Decode side. Mints the capability. Idempotent by (request, attempt) while the transfer lives
  // (the spans of a repeated call are ignored). A higher attempt cancels the lower one; a lower
  // one, or one that has ended, is FAILED_PRECONDITION. RESOURCE_EXHAUSTED at max_transfers;
  // INVALID_ARGUMENT.
  virtual absl::StatusOr<TransferId> Reserve(const ReceiveSpec& spec) = 0;
  virtual void CancelReceive(TransferId transfer, absl::Status reason) = 0;

  // Prefill side: asks for a cached prefix and receives it. Reports, and is cancelled, like a
  // reservation; errors are those of Reserve and StartSend.
  virtual absl::StatusOr<TransferId> Fetch(const FetchSpec& spec) = 0;

  // Moves messages and timers; appends what happened to *events. Never waits. Returns whether
  // anything moved.
  virtual bool Poll(std::vector<TransferEvent>* events) = 0;
  // When Poll must be called again at the latest if nothing arrives.
  virtual absl::Time NextDeadline() const = 0;

  virtual TransferStats Stats() const = 0;
  virtual std::vector<PeerTransport> Transports() const = 0;
};

}  // namespace sluice
