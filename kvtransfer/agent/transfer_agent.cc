#include "kvtransfer/agent/transfer_agent.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "kvtransfer/agent/agent_core.h"
#include "kvtransfer/agent/receive_side.h"
#include "kvtransfer/agent/send_side.h"

namespace sluice {
namespace {

class ChannelTransferAgent : public TransferAgent {
 public:
  ChannelTransferAgent(const TransferOptions& options, Incarnation self, KvChannel* channel,
                       const Clock* clock)
      : core_(options, self, channel, clock),
        send_(&core_),
        receive_(&core_),
        last_poll_(clock->Now()) {}

  absl::Status StartSend(const SendSpec& spec) override { return send_.Start(spec); }
  absl::Status Offer(TransferId transfer, int begin, int end,
                     std::vector<absl::Span<const uint8_t>> blocks) override {
    return send_.Offer(transfer, begin, end, std::move(blocks));
  }
  absl::Status FinishSend(TransferId transfer, const FirstToken& first) override {
    return send_.Finish(transfer, first);
  }
  void CancelSend(TransferId transfer, absl::Status reason) override {
    send_.Cancel(transfer, std::move(reason));
  }

  absl::StatusOr<TransferId> Reserve(const ReceiveSpec& spec) override {
    return receive_.Reserve(spec);
  }
  void CancelReceive(TransferId transfer, absl::Status reason) override {
    receive_.Cancel(transfer, std::move(reason));
  }
  absl::StatusOr<TransferId> Fetch(const FetchSpec& spec) override { return receive_.Fetch(spec); }

  bool Poll(std::vector<TransferEvent>* events) override;
  absl::Time NextDeadline() const override;

  TransferStats Stats() const override {
    TransferStats stats = core_.stats;
    stats.resends = send_.resends();
    stats.sends_in_flight = send_.num_transfers();
    stats.receives_in_flight = receive_.num_transfers();
    return stats;
  }
  std::vector<PeerTransport> Transports() const override { return core_.channel->Transports(); }

 private:
  void OnChannelEvent(const ChannelEvent& event, absl::Time now);
  void OnMessage(const ChannelEvent& event, absl::Time now);
  void Refuse(const ChannelEvent& event);
  void BuryCondemned(absl::Time now);
  void ForgiveOwnPause(absl::Time now);

  AgentCore core_;
  SendSide send_;
  ReceiveSide receive_;
  absl::Time last_poll_;
  std::vector<ChannelEvent> channel_events_;  // kept for its capacity
};

bool ChannelTransferAgent::Poll(std::vector<TransferEvent>* events) {
  absl::Time now = core_.clock->Now();
  ForgiveOwnPause(now);

  // What arrived comes before what is late: after a pause of our own the answer may lie in the
  // channel.
  channel_events_.clear();
  bool moved = core_.channel->Poll(&channel_events_);
  for (const ChannelEvent& event : channel_events_) OnChannelEvent(event, now);
  BuryCondemned(now);

  for (PeerTable::Dead& dead : core_.peers.Tick(now)) {
    core_.Condemn(dead.peer, std::move(dead.reason));
  }
  send_.Tick(now);
  receive_.Tick(now);
  BuryCondemned(now);

  moved |= send_.Pump(now);
  receive_.FlushAcks();

  moved |= !core_.events.empty();
  for (TransferEvent& event : core_.events) events->push_back(std::move(event));
  core_.events.clear();
  return moved;
}

absl::Time ChannelTransferAgent::NextDeadline() const {
  if (!core_.events.empty()) return absl::InfinitePast();
  return std::min({send_.NextDeadline(), receive_.NextDeadline(), core_.peers.NextDeadline()});
}

void ChannelTransferAgent::OnChannelEvent(const ChannelEvent& event, absl::Time now) {
  switch (event.kind) {
    case ChannelEvent::Kind::kMessage:
      OnMessage(event, now);
      break;
    case ChannelEvent::Kind::kSendDone:
      send_.OnSendDone(event.operation, event.status, now);
      break;
    case ChannelEvent::Kind::kReceiveDone:
      receive_.OnReceiveDone(event.operation, event.status, now);
      break;
    case ChannelEvent::Kind::kPeerFailed: {
      std::vector<Incarnation> owners = core_.peers.Owners(event.peer);
      for (Incarnation owner : owners) core_.Condemn(owner, event.status);
      if (owners.empty()) core_.channel->Disconnect(event.peer);
      BuryCondemned(now);
      break;
    }
  }
}

void ChannelTransferAgent::OnMessage(const ChannelEvent& event, absl::Time now) {
  absl::StatusOr<handoff::Frame> frame = handoff::Decode(event.header);
  if (!frame.ok()) {
    SLUICE_LOG(Debug) << "refused a message: " << frame.status().message();
    Refuse(event);
    return;
  }
  if (frame->target != core_.self) {
    // Meant for an earlier life of this process.
    if (event.peer != PeerId() && frame->transfer != TransferId() &&
        !std::holds_alternative<handoff::Nack>(frame->body)) {
      core_.peers.SendTo(event.peer, frame->sender, frame->transfer,
                         handoff::Nack{handoff::NackCode::kStale});
    }
    Refuse(event);
    return;
  }
  core_.peers.Heard(frame->sender, now);

  handoff::Side side = handoff::Side::kReceiver;
  if (const auto* cancel = std::get_if<handoff::Cancel>(&frame->body)) {
    side = cancel->to;
  } else if (const auto* answer = std::get_if<handoff::CancelAck>(&frame->body)) {
    side = answer->to;
  } else if (std::holds_alternative<handoff::Ack>(frame->body) ||
             std::holds_alternative<handoff::Commit>(frame->body) ||
             std::holds_alternative<handoff::Nack>(frame->body)) {
    side = handoff::Side::kSender;
  }
  bool is_offer = std::holds_alternative<handoff::Offer>(frame->body);
  if (event.payload != PayloadId() && !is_offer) {
    Refuse(event);  // nobody attaches a payload to anything else
  } else if (std::holds_alternative<handoff::Heartbeat>(frame->body)) {
    // Heard above.
  } else if (const auto* fetch = std::get_if<handoff::Fetch>(&frame->body)) {
    receive_.OnFetch(*frame, *fetch, event.peer);
  } else if (side == handoff::Side::kReceiver) {
    receive_.OnMessage(*frame, event.peer, event.payload, event.payload_bytes, now);
  } else if (!send_.OnMessage(*frame, now)) {
    if (std::holds_alternative<handoff::Cancel>(frame->body)) {
      core_.peers.Send(frame->sender, frame->transfer,
                       handoff::CancelAck{handoff::Side::kReceiver});
    }
  }
  BuryCondemned(now);
}

void ChannelTransferAgent::Refuse(const ChannelEvent& event) {
  ++core_.stats.messages_refused;
  if (event.payload != PayloadId()) core_.channel->Drop(event.payload);
}

void ChannelTransferAgent::BuryCondemned(absl::Time now) {
  while (!core_.condemned.empty()) {
    PeerTable::Dead dead = std::move(core_.condemned.back());
    core_.condemned.pop_back();
    // An endpoint ends as a whole: whoever else was reached through it ends with it.
    for (const PeerId endpoint : core_.peers.Endpoints(dead.peer)) {
      for (Incarnation peer : core_.peers.Owners(endpoint)) {
        send_.OnPeerDead(peer, dead.reason, now);
        receive_.OnPeerDead(peer, dead.reason, now);
        core_.peers.Remove(peer);
      }
    }
  }
}

void ChannelTransferAgent::ForgiveOwnPause(absl::Time now) {
  // Polls come at least once a heartbeat interval while transfers live. A longer gap was ours: the
  // process was stopped or starved, and the peers' silence in it proves nothing.
  absl::Duration gap = now - last_poll_;
  if (gap > 2 * core_.options.heartbeat_interval) {
    core_.peers.Forgive(gap - core_.options.heartbeat_interval);
  }
  last_poll_ = now;
}

}  // namespace

std::unique_ptr<TransferAgent> TransferAgent::Create(const TransferOptions& options,
                                                     Incarnation self, KvChannel* channel,
                                                     const Clock* clock) {
  return std::make_unique<ChannelTransferAgent>(options, self, channel, clock);
}

}  // namespace sluice
