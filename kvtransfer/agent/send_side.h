// The sending half of a transfer agent: lends the owner's blocks to the channel, message by
// message, as the sender machines (kvtransfer/handoff/sender.h) ask. A prefill worker sends what it
// computes, a decode worker what is fetched from it. Transfer thread only.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvtransfer/agent/agent_core.h"
#include "kvtransfer/agent/deadline_index.h"
#include "kvtransfer/handoff/coverage.h"
#include "kvtransfer/handoff/sender.h"

namespace sluice {

class SendSide {
 public:
  explicit SendSide(AgentCore* core) : core_(core) {}

  absl::Status Start(const SendSpec& spec);
  absl::Status Offer(const TransferId& transfer, int begin, int end,
                     std::vector<absl::Span<const uint8_t>> blocks);
  absl::Status Finish(const TransferId& transfer, const FirstToken& first);
  void Cancel(const TransferId& transfer, absl::Status reason);

  // A message for one of our senders. False: there is no such transfer.
  bool OnMessage(const handoff::Frame& frame, absl::Time now);
  void OnSendDone(OperationId operation, const absl::Status& status, absl::Time now);
  void OnPeerDead(Incarnation peer, const absl::Status& reason, absl::Time now);
  void Tick(absl::Time now);
  // Computes checksums and sends what the windows allow, within a budget. Returns whether it did
  // anything.
  bool Pump(absl::Time now);

  absl::Time NextDeadline() const;
  int num_transfers() const { return static_cast<int>(transfers_.size()); }
  uint64_t resends() const;

 private:
  using Key = uint64_t;  // local, in order of start
  struct Message {
    std::vector<absl::Span<const uint8_t>> blocks;
    uint32_t begin_token = 0;
    uint64_t payload_bytes = 0;
    bool ahead = false;  // checksummed, and not given back by the channel since
  };
  struct Transfer {
    Transfer(const SendSpec& s, const handoff::SenderOptions& options, handoff::Bind bind,
             size_t num_blocks, absl::Time now)
        : spec(s), machine(options, std::move(bind), now), offered(num_blocks) {}
    SendSpec spec;
    handoff::Sender machine;
    handoff::Coverage offered;
    std::vector<Message> messages;  // by seq
    uint32_t num_checksummed = 0;   // messages are checksummed in order
    uint32_t num_ahead = 0;         // messages that are `ahead`
    uint64_t ahead_bytes = 0;
    bool finished = false;
    std::optional<absl::Time> first_offer;
    bool attached = true;        // counted in the peer table
    bool ready = false;          // queued in ready_
    bool unchecksummed = false;  // queued in unchecksummed_
  };
  struct Operation {
    Key key = 0;
    uint32_t seq = 0;
  };

  std::optional<Key> Find(const TransferId& transfer) const;
  // Steps the machine and does what it says. The transfer may be gone afterwards. Returns the
  // machine's verdict.
  bool Step(Key key, const handoff::Sender::Event& event, absl::Time now);
  void Apply(Key key, Transfer* transfer, const handoff::Sender::Action& action, absl::Time now);
  bool PumpChecksums(absl::Time now);
  // Queues the transfer for its next checksum, if it may be computed already.
  void QueueChecksum(Key key, Transfer* transfer);
  bool SendNext(Key key, absl::Time now);

  AgentCore* const core_;
  std::map<Key, Transfer> transfers_;
  absl::flat_hash_map<TransferId, Key> by_id_;
  absl::flat_hash_map<OperationId, Operation> operations_;
  DeadlineIndex<Key> deadlines_;
  std::deque<Key> ready_;          // transfers with something to send; served round robin
  std::deque<Key> unchecksummed_;  // transfers whose next checksum is due; round robin
  Key last_key_ = 0;
  uint64_t ended_resends_ = 0;
};

}  // namespace sluice
