#include "tests/support/memory_channel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::testing {

// All state is the hub's to lock.
class MemoryChannel final : public KvChannel {
 public:
  MemoryChannel(MemoryHub* hub, std::string address) : hub_(hub), address_(std::move(address)) {}

  // The end of a process: pending operations with it end with errors.
  ~MemoryChannel() override {
    absl::MutexLock lock(&hub_->mu_);
    hub_->channels_.erase(address_);
    for (auto it = hub_->announced_.begin(); it != hub_->announced_.end();) {
      if (it->second.to == address_) {
        hub_->Push(it->second.from, SendDone(it->second.send_operation, Gone()));
        it = hub_->announced_.erase(it);
      } else {
        it = it->second.from == address_ ? Orphan(it) : std::next(it);
      }
    }
    auto& held = hub_->held_receives_;
    for (const auto& receive : held) {
      if (receive.announcement.from == address_) hub_->Finish(receive, /*sender_lives=*/false);
      if (receive.announcement.to == address_) {
        hub_->Push(receive.announcement.from,
                   SendDone(receive.announcement.send_operation, Gone()));
      }
    }
    held.erase(std::remove_if(held.begin(), held.end(),
                              [this](const auto& r) {
                                return r.announcement.from == address_ ||
                                       r.announcement.to == address_;
                              }),
               held.end());
  }

  std::string LocalAddress() const override { return address_; }

  absl::StatusOr<PeerId> Connect(const std::string& address) override {
    absl::MutexLock lock(&hub_->mu_);
    for (const auto& [id, peer] : peers_) {
      if (peer == address) return id;
    }
    const PeerId id(++hub_->last_id_);
    peers_[id] = address;
    return id;
  }

  void Disconnect(PeerId peer) override {
    absl::MutexLock lock(&hub_->mu_);
    peers_.erase(peer);
  }

  absl::Status Send(PeerId peer, std::string header, std::vector<absl::Span<const uint8_t>> payload,
                    OperationId operation) override {
    absl::MutexLock lock(&hub_->mu_);
    const auto entry = peers_.find(peer);
    if (entry == peers_.end()) return absl::NotFoundError("no such peer");
    const auto target = hub_->channels_.find(entry->second);
    if (target == hub_->channels_.end()) {
      hub_->Push(address_, SendDone(operation, Gone()));
      ChannelEvent failed;
      failed.kind = ChannelEvent::Kind::kPeerFailed;
      failed.peer = peer;
      failed.status = Gone();
      hub_->Push(address_, std::move(failed));
      return absl::OkStatus();
    }
    ChannelEvent message;
    message.kind = ChannelEvent::Kind::kMessage;
    message.peer = target->second->PeerOf(address_);
    message.header = std::move(header);
    for (const auto& span : payload) message.payload_bytes += span.size();
    bytes_sent_ += message.payload_bytes;
    if (message.payload_bytes > 0) {
      message.payload = PayloadId(++hub_->last_id_);
      hub_->announced_[message.payload] = {address_, operation, std::move(payload), entry->second};
    } else {
      hub_->Push(address_, SendDone(operation, absl::OkStatus()));
    }
    hub_->Push(entry->second, std::move(message));
    return absl::OkStatus();
  }

  absl::Status Receive(PayloadId payload, std::vector<absl::Span<uint8_t>> destination,
                       OperationId operation) override {
    absl::MutexLock lock(&hub_->mu_);
    const auto entry = hub_->announced_.find(payload);
    if (entry == hub_->announced_.end()) return absl::NotFoundError("no such payload");
    MemoryHub::HeldReceive receive{std::move(entry->second), std::move(destination), operation};
    hub_->announced_.erase(entry);
    if (hub_->held_) {
      hub_->held_receives_.push_back(std::move(receive));
    } else {
      hub_->Finish(receive, hub_->channels_.contains(receive.announcement.from));
    }
    return absl::OkStatus();
  }

  void Drop(PayloadId payload) override {
    absl::MutexLock lock(&hub_->mu_);
    const auto entry = hub_->announced_.find(payload);
    if (entry == hub_->announced_.end()) return;
    hub_->Push(entry->second.from, SendDone(entry->second.send_operation, absl::OkStatus()));
    hub_->announced_.erase(entry);
  }

  bool Poll(std::vector<ChannelEvent>* events) override {
    absl::MutexLock lock(&hub_->mu_);
    ++hub_->num_held_polls_;
    hub_->mu_.Await(absl::Condition(&hub_->polls_return_));
    --hub_->num_held_polls_;
    const bool any = !events_.empty();
    events->insert(events->end(), std::make_move_iterator(events_.begin()),
                   std::make_move_iterator(events_.end()));
    events_.clear();
    return any;
  }

  void WaitForActivity(absl::Duration timeout) override {
    const auto active = [this] { return woken_ || !events_.empty(); };
    absl::MutexLock lock(&hub_->mu_);
    hub_->mu_.AwaitWithTimeout(absl::Condition(&active), timeout);
    woken_ = false;
  }

  void Wake() override {
    absl::MutexLock lock(&hub_->mu_);
    woken_ = true;
  }

  size_t max_header_bytes() const override { return 8192; }

  std::vector<PeerTransport> Transports() const override {
    absl::MutexLock lock(&hub_->mu_);
    std::vector<PeerTransport> transports;
    for (const auto& [id, address] : peers_) {
      PeerTransport transport;
      transport.id = id;
      transport.peer = address;
      transport.transport = "self";
      transport.bytes_sent = bytes_sent_;
      transport.bytes_received = bytes_received_;
      transports.push_back(std::move(transport));
    }
    return transports;
  }

 private:
  friend class MemoryHub;

  static absl::Status Gone() { return absl::UnavailableError("the peer is gone"); }

  static ChannelEvent SendDone(OperationId operation, absl::Status status) {
    ChannelEvent event;
    event.kind = ChannelEvent::Kind::kSendDone;
    event.operation = operation;
    event.status = std::move(status);
    return event;
  }

  // The sender died: its memory must not be read any more.
  std::map<PayloadId, MemoryHub::Announcement>::iterator Orphan(
      std::map<PayloadId, MemoryHub::Announcement>::iterator it) {
    it->second.source.clear();
    return std::next(it);
  }

  PeerId PeerOf(const std::string& address) const {
    for (const auto& [id, peer] : peers_) {
      if (peer == address) return id;
    }
    return PeerId();
  }

  MemoryHub* const hub_;
  const std::string address_;
  std::map<PeerId, std::string> peers_;
  std::vector<ChannelEvent> events_;
  // Of all peers; tests have one.
  uint64_t bytes_sent_ = 0;
  uint64_t bytes_received_ = 0;
  bool woken_ = false;
};

std::unique_ptr<KvChannel> MemoryHub::NewChannel() {
  absl::MutexLock lock(&mu_);
  const std::string address = absl::StrCat("memory:", ++last_id_);
  auto channel = std::make_unique<MemoryChannel>(this, address);
  channels_[address] = channel.get();
  return channel;
}

void MemoryHub::HoldReceives(bool held) {
  absl::MutexLock lock(&mu_);
  held_ = held;
  if (held) return;
  for (const HeldReceive& receive : held_receives_) {
    Finish(receive, channels_.contains(receive.announcement.from));
  }
  held_receives_.clear();
}

int MemoryHub::num_held_receives() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(held_receives_.size());
}

void MemoryHub::HoldPolls(bool held) {
  absl::MutexLock lock(&mu_);
  polls_return_ = !held;
}

int MemoryHub::num_held_polls() const {
  absl::MutexLock lock(&mu_);
  return num_held_polls_;
}

void MemoryHub::Finish(const HeldReceive& receive, bool sender_lives) {
  ChannelEvent done;
  done.kind = ChannelEvent::Kind::kReceiveDone;
  done.operation = receive.operation;
  if (!sender_lives) {
    done.status = MemoryChannel::Gone();
    Push(receive.announcement.to, std::move(done));
    return;
  }
  std::string bytes;
  for (const auto& span : receive.announcement.source) {
    bytes.append(reinterpret_cast<const char*>(span.data()), span.size());
  }
  size_t offset = 0;
  for (const auto& span : receive.destination) {
    std::memcpy(span.data(), bytes.data() + offset, span.size());
    offset += span.size();
  }
  const auto receiver = channels_.find(receive.announcement.to);
  if (receiver != channels_.end()) receiver->second->bytes_received_ += bytes.size();
  Push(receive.announcement.to, std::move(done));
  Push(receive.announcement.from,
       MemoryChannel::SendDone(receive.announcement.send_operation, absl::OkStatus()));
}

void MemoryHub::Push(const std::string& to, ChannelEvent event) {
  const auto channel = channels_.find(to);
  if (channel != channels_.end()) channel->second->events_.push_back(std::move(event));
}

}  // namespace sluice::testing
