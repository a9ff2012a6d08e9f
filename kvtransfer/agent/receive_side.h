// The receiving half of a transfer agent: takes offered payloads into the owner's blocks, as the
// receiver machines (kvtransfer/handoff/receiver.h) decide. A decode worker receives what it has
// reserved, a prefill worker what it fetches. Transfer thread only.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvtransfer/agent/agent_core.h"
#include "kvtransfer/agent/deadline_index.h"
#include "kvtransfer/handoff/fetch.h"
#include "kvtransfer/handoff/receiver.h"
#include "kvtransfer/handoff/tombstones.h"

namespace sluice {

class ReceiveSide {
 public:
  explicit ReceiveSide(AgentCore* core)
      : core_(core), tombstones_(static_cast<size_t>(core->options.max_tombstones)) {}

  absl::StatusOr<TransferId> Reserve(const ReceiveSpec& spec);
  void Cancel(const TransferId& transfer, absl::Status reason);
  // A reservation whose filling is asked of a decode worker.
  absl::StatusOr<TransferId> Fetch(const FetchSpec& spec);

  // A message for one of our receivers; takes or drops its payload. `origin` is the endpoint the
  // message can be answered through, if one is known.
  void OnMessage(const handoff::Frame& frame, PeerId origin, PayloadId payload,
                 uint64_t payload_bytes, absl::Time now);
  // Somebody asks for the cached prefix of one of our reservations.
  void OnFetch(const handoff::Frame& frame, const handoff::Fetch& fetch, PeerId origin);
  void OnReceiveDone(OperationId operation, const absl::Status& status, absl::Time now);
  void OnPeerDead(Incarnation peer, const absl::Status& reason, absl::Time now);
  void Tick(absl::Time now);
  // Sends the acknowledgements that came due since the last call, one for each transfer.
  void FlushAcks();

  // A transfer of ours, open or closed.
  bool Knows(const TransferId& transfer) const {
    return by_id_.contains(transfer) || tombstones_.Find(transfer) != nullptr;
  }
  absl::Time NextDeadline() const;
  int num_transfers() const { return static_cast<int>(transfers_.size()); }

 private:
  using Key = uint64_t;  // local, in order of reservation
  struct Transfer {
    Transfer(const TransferId& transfer, const ReceiveSpec& s,
             const handoff::ReceiverOptions& options, handoff::Bind expect, absl::Time now)
        : id(transfer), spec(s), expected(std::move(expect)), machine(options, expected, now) {}
    TransferId id;
    ReceiveSpec spec;
    handoff::Bind expected;
    handoff::Receiver machine;
    std::optional<handoff::FetchRequest> asked;  // its filling was asked for by us
    handoff::FetchGate gate;                     // who may fetch its cached prefix
    bool attached = false;                       // counted in the peer table
    bool ack_due = false;                        // queued in acks_due_
  };
  struct Operation {
    Key key = 0;
    uint32_t seq = 0;
    uint32_t begin_token = 0;
    size_t first_cell = 0;
    size_t num_cells = 0;
  };
  // The message being handled.
  struct Incoming {
    PeerId origin;
    Incarnation from;
    PayloadId payload;
  };

  absl::StatusOr<Key> Open(const ReceiveSpec& spec, absl::Duration lease);
  void SendDueFetch(Transfer* transfer, absl::Time now);
  absl::Time NextDeadlineOf(const Transfer& transfer) const;
  std::optional<Key> Find(const TransferId& transfer) const;
  bool Step(Key key, const handoff::Receiver::Event& event, Incoming* incoming, absl::Time now);
  void Apply(Key key, Transfer* transfer, const handoff::Receiver::Action& action,
             Incoming* incoming, absl::Time now);
  void Take(Key key, Transfer* transfer, const handoff::Receiver::TakePayload& take,
            Incoming* incoming);
  PeerId Origin(const handoff::Frame& frame, PeerId origin);
  void Answer(const Incoming& incoming, const TransferId& transfer, handoff::Body body);

  AgentCore* const core_;
  handoff::Tombstones tombstones_;
  std::map<Key, Transfer> transfers_;
  absl::flat_hash_map<TransferId, Key> by_id_;
  absl::flat_hash_map<RequestId, Key> by_request_;  // its live attempt
  absl::flat_hash_map<OperationId, Operation> operations_;
  DeadlineIndex<Key> deadlines_;
  std::vector<Key> acks_due_;
  // Receives that the channel refused to start; ended after the step that asked for them.
  std::vector<std::pair<OperationId, absl::Status>> refused_by_channel_;
  Key last_key_ = 0;
};

}  // namespace sluice
