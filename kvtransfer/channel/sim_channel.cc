#include "kvtransfer/channel/sim_channel.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

uint64_t TotalBytes(const std::vector<absl::Span<const uint8_t>>& spans) {
  uint64_t bytes = 0;
  for (const auto& span : spans) bytes += span.size();
  return bytes;
}

bool Overlap(absl::Span<const uint8_t> a, absl::Span<const uint8_t> b) {
  return a.data() < b.data() + b.size() && b.data() < a.data() + a.size();
}

void FlipBit(uint8_t* data, size_t size_bytes, uint64_t random) {
  data[random / 8 % size_bytes] ^= static_cast<uint8_t>(1u << (random % 8));
}

// The first `bytes` bytes of the concatenation of `source`, into `destination` likewise.
void CopyBytes(const std::vector<absl::Span<const uint8_t>>& source,
               const std::vector<absl::Span<uint8_t>>& destination, uint64_t bytes) {
  size_t to = 0, to_offset = 0;
  for (const auto& span : source) {
    for (size_t from_offset = 0;
         from_offset < span.size() && bytes > 0 && to < destination.size();) {
      size_t n = std::min({span.size() - from_offset, destination[to].size() - to_offset,
                           static_cast<size_t>(bytes)});
      std::memcpy(destination[to].data() + to_offset, span.data() + from_offset, n);
      from_offset += n;
      to_offset += n;
      bytes -= n;
      if (to_offset == destination[to].size()) {
        ++to;
        to_offset = 0;
      }
    }
  }
}

}  // namespace

// Shared by both ends. Eager: `copy` holds the bytes. Rendezvous: `source` is the sender's memory
// and is read only while the sender's operation has not ended.
struct SimNetwork::Announcement {
  std::string from;
  OperationId operation;
  std::string copy;
  std::vector<absl::Span<const uint8_t>> source;
  uint64_t bytes = 0;
  bool eager = false;
  bool send_ended = false;
};

SimNetwork::SimNetwork(uint64_t seed) : random_(seed) {}
SimNetwork::~SimNetwork() = default;

std::unique_ptr<SimChannel> SimNetwork::NewChannel(const std::string& name) {
  std::unique_ptr<SimChannel> channel(
      new SimChannel(this, absl::StrCat("sim:", name, "#", ++last_channel_)));
  channels_[channel->address_] = channel.get();
  return channel;
}

absl::Time SimNetwork::NextEventTime() const {
  return schedule_.empty() ? absl::InfiniteFuture() : schedule_.begin()->first;
}

void SimNetwork::AdvanceTo(absl::Time time) {
  while (!schedule_.empty() && schedule_.begin()->first <= time) {
    auto first = schedule_.begin();
    now_ = std::max(now_, first->first);
    std::function<void()> action = std::move(first->second);
    schedule_.erase(first);
    action();
  }
  now_ = std::max(now_, time);
}

void SimNetwork::Cut(const SimChannel* from, const SimChannel* to) {
  cuts_.insert({from->address_, to->address_});
}

void SimNetwork::HealAllLinks() { cuts_.clear(); }

void SimNetwork::SetPaused(const SimChannel* channel, bool paused) {
  if (paused) {
    paused_.insert(channel->address_);
  } else {
    paused_.erase(channel->address_);
  }
}

bool SimNetwork::MayRead(absl::Span<const uint8_t> memory) const {
  for (const auto& [address, channel] : channels_) {
    for (const auto& [operation, send] : channel->sends_) {
      for (const auto& span : send.payload->source) {
        if (Overlap(span, memory)) return true;
      }
    }
  }
  return false;
}

bool SimNetwork::MayWrite(absl::Span<const uint8_t> memory) const {
  for (const auto& [address, channel] : channels_) {
    for (const auto& [operation, receive] : channel->receives_) {
      for (const auto& span : receive.destination) {
        if (Overlap(span, memory)) return true;
      }
    }
  }
  return false;
}

absl::Duration SimNetwork::Delay() {
  absl::Duration longest = Chance() < faults_.slow ? faults_.max_slow_delay : faults_.max_delay;
  return faults_.min_delay + (longest - faults_.min_delay) * Chance();
}

void SimNetwork::At(absl::Time time, std::function<void()> action) {
  schedule_.emplace(time, std::move(action));
}

SimChannel* SimNetwork::Find(const std::string& address) const {
  auto it = channels_.find(address);
  return it == channels_.end() ? nullptr : it->second;
}

void SimNetwork::Deliver(const std::string& from, const std::string& to, std::string header,
                         std::shared_ptr<Announcement> payload) {
  SimChannel* receiver = Find(to);
  if (receiver == nullptr || IsCut(from, to)) return;
  ChannelEvent event;
  event.kind = ChannelEvent::Kind::kMessage;
  event.peer = receiver->EndpointTo(from);
  event.header = std::move(header);
  if (payload != nullptr) {
    event.payload = PayloadId(++receiver->last_payload_);
    event.payload_bytes = payload->bytes;
    receiver->announced_[event.payload] = std::move(payload);
  }
  receiver->events_.push_back(std::move(event));
}

void SimNetwork::StartReceive(std::shared_ptr<Announcement> payload, SimChannel* receiver,
                              std::vector<absl::Span<uint8_t>> destination, OperationId operation) {
  receiver->receives_[operation] = {std::move(payload), std::move(destination)};
  if (faults_.hang_receive > 0 && Chance() < faults_.hang_receive) return;
  At(now_ + Delay(),
     [this, address = receiver->address_, operation] { TryComplete(address, operation); });
}

void SimNetwork::TryComplete(const std::string& address, OperationId operation) {
  SimChannel* receiver = Find(address);
  if (receiver == nullptr) return;
  auto it = receiver->receives_.find(operation);
  if (it == receiver->receives_.end()) return;  // ended by Disconnect
  std::shared_ptr<Announcement> payload = it->second.payload;
  if (!payload->eager) {
    bool stalled = IsPaused(address) || IsCut(payload->from, address) ||
                   (faults_.read_needs_sender && IsPaused(payload->from));
    if (stalled || Find(payload->from) == nullptr) {
      // Over a dead link UCX may report nothing for long: look again until somebody gives up.
      At(now_ + absl::Milliseconds(100),
         [this, address, operation] { TryComplete(address, operation); });
      return;
    }
    if (payload->send_ended) {
      receiver->FinishReceive(operation, absl::CancelledError("the sender has ended this send"));
      return;
    }
  }
  std::vector<absl::Span<const uint8_t>> source = payload->source;
  if (payload->eager) {
    source = {absl::MakeSpan(reinterpret_cast<const uint8_t*>(payload->copy.data()),
                             payload->copy.size())};
  }
  std::vector<absl::Span<uint8_t>>& destination = it->second.destination;
  if (Chance() < faults_.fail_receive) {
    CopyBytes(source, destination, static_cast<uint64_t>(payload->bytes * Chance()));
    receiver->FinishReceive(operation, absl::UnavailableError("connection lost"));
    EndSend(payload, absl::UnavailableError("connection lost"));
    return;
  }
  CopyBytes(source, destination, payload->bytes);
  if (Chance() < faults_.damage_payload) {
    absl::Span<uint8_t> victim = destination[random_() % destination.size()];
    FlipBit(victim.data(), victim.size(), random_());
  }
  PeerId from = receiver->EndpointTo(payload->from);
  if (from != PeerId()) receiver->endpoints_[from].bytes_received += payload->bytes;
  receiver->FinishReceive(operation, absl::OkStatus());
  EndSend(payload, absl::OkStatus());
}

void SimNetwork::EndSend(const std::shared_ptr<Announcement>& payload, absl::Status status) {
  if (payload->eager || payload->send_ended) return;
  // The sender hears of it later; until then the source is still the channel's.
  At(now_ + Delay(), [this, payload, status = std::move(status)] {
    SimChannel* sender = Find(payload->from);
    if (sender != nullptr) sender->FinishSend(payload->operation, status);
  });
}

void SimNetwork::OnGone(SimChannel* channel) {
  channels_.erase(channel->address_);
  paused_.erase(channel->address_);
  for (auto& [address, other] : channels_) {
    PeerId endpoint = other->EndpointTo(channel->address_);
    if (endpoint == PeerId() || Chance() >= faults_.report_crash) continue;
    At(now_ + Delay(), [this, address = address, endpoint] {
      SimChannel* survivor = Find(address);
      if (survivor == nullptr || !survivor->endpoints_.contains(endpoint)) return;
      ChannelEvent event;
      event.kind = ChannelEvent::Kind::kPeerFailed;
      event.peer = endpoint;
      event.status = absl::UnavailableError("peer reset the connection");
      survivor->events_.push_back(std::move(event));
    });
  }
}

SimChannel::~SimChannel() { network_->OnGone(this); }

absl::StatusOr<PeerId> SimChannel::Connect(const std::string& address) {
  if (address.substr(0, 4) != "sim:") return absl::InvalidArgumentError("not a sim address");
  PeerId known = EndpointTo(address);
  if (known != PeerId()) return known;
  PeerId peer(++last_peer_);
  endpoints_[peer].address = address;
  return peer;
}

void SimChannel::Disconnect(PeerId peer) {
  auto it = endpoints_.find(peer);
  if (it == endpoints_.end()) return;
  std::string address = it->second.address;
  endpoints_.erase(it);
  std::vector<OperationId> receives, sends;
  for (const auto& [operation, receive] : receives_) {
    if (receive.payload->from == address) receives.push_back(operation);
  }
  for (const auto& [operation, send] : sends_) {
    if (send.to == address) sends.push_back(operation);
  }
  for (OperationId id : receives) FinishReceive(id, absl::CancelledError("disconnected"));
  for (OperationId id : sends) FinishSend(id, absl::CancelledError("disconnected"));
}

absl::Status SimChannel::Send(PeerId peer, std::string header,
                              std::vector<absl::Span<const uint8_t>> payload,
                              OperationId operation) {
  auto it = endpoints_.find(peer);
  if (it == endpoints_.end()) return absl::UnavailableError("no such endpoint");
  if (header.size() > max_header_bytes()) return absl::InvalidArgumentError("header too long");
  const SimFaults& faults = network_->faults_;
  const std::string to = it->second.address;

  std::shared_ptr<SimNetwork::Announcement> announcement;
  uint64_t bytes = TotalBytes(payload);
  it->second.bytes_sent += bytes;
  if (bytes > 0) {
    announcement = std::make_shared<SimNetwork::Announcement>();
    announcement->from = address_;
    announcement->operation = operation;
    announcement->bytes = bytes;
    announcement->eager = bytes <= faults.eager_bytes;
    if (announcement->eager) {
      for (const auto& span : payload) {
        announcement->copy.append(reinterpret_cast<const char*>(span.data()), span.size());
      }
    } else {
      announcement->source = std::move(payload);
      sends_[operation] = {to, announcement};
    }
  }
  bool eager = announcement == nullptr || announcement->eager;
  bool dropped = network_->Chance() < faults.drop || network_->IsCut(address_, to);
  if (eager) {
    ChannelEvent done;
    done.kind = ChannelEvent::Kind::kSendDone;
    done.operation = operation;
    events_.push_back(std::move(done));
  } else if (dropped) {
    // Lost before the receiver saw it: UCX ends such a send when the endpoint fails.
    network_->EndSend(announcement, absl::UnavailableError("connection lost"));
  }
  if (dropped) return absl::OkStatus();

  if (!header.empty() && network_->Chance() < faults.damage_header) {
    FlipBit(reinterpret_cast<uint8_t*>(header.data()), header.size(), network_->random_());
  }
  int copies = network_->Chance() < faults.duplicate ? 2 : 1;
  for (int i = 0; i < copies; ++i) {
    network_->At(network_->now_ + network_->Delay(),
                 [network = network_, from = address_, to, header, announcement] {
                   network->Deliver(from, to, header, announcement);
                 });
  }
  return absl::OkStatus();
}

absl::Status SimChannel::Receive(PayloadId payload, std::vector<absl::Span<uint8_t>> destination,
                                 OperationId operation) {
  auto it = announced_.find(payload);
  if (it == announced_.end()) return absl::NotFoundError("no such payload");
  std::shared_ptr<SimNetwork::Announcement> announcement = std::move(it->second);
  announced_.erase(it);
  uint64_t bytes = 0;
  for (const auto& span : destination) bytes += span.size();
  if (bytes != announcement->bytes) {
    network_->EndSend(announcement, absl::OkStatus());
    return absl::InvalidArgumentError("destination does not fit the payload");
  }
  network_->StartReceive(std::move(announcement), this, std::move(destination), operation);
  return absl::OkStatus();
}

void SimChannel::Drop(PayloadId payload) {
  auto it = announced_.find(payload);
  if (it == announced_.end()) return;
  std::shared_ptr<SimNetwork::Announcement> announcement = std::move(it->second);
  announced_.erase(it);
  // A duplicate of a payload that is being received must not end the send under it.
  for (const auto& [operation, receive] : receives_) {
    if (receive.payload == announcement) return;
  }
  network_->EndSend(announcement, absl::OkStatus());
}

bool SimChannel::Poll(std::vector<ChannelEvent>* events) {
  if (events_.empty()) return false;
  for (ChannelEvent& event : events_) events->push_back(std::move(event));
  events_.clear();
  return true;
}

std::vector<PeerTransport> SimChannel::Transports() const {
  std::vector<PeerTransport> transports;
  for (const auto& [peer, endpoint] : endpoints_) {
    PeerTransport transport;
    transport.id = peer;
    transport.peer = endpoint.address;
    transport.transport = "sim";
    transport.bytes_sent = endpoint.bytes_sent;
    transport.bytes_received = endpoint.bytes_received;
    transports.push_back(std::move(transport));
  }
  return transports;
}

std::vector<absl::Span<uint8_t>> SimChannel::PendingDestinations() const {
  std::vector<absl::Span<uint8_t>> all;
  for (const auto& [operation, receive] : receives_) {
    all.insert(all.end(), receive.destination.begin(), receive.destination.end());
  }
  return all;
}

std::vector<absl::Span<const uint8_t>> SimChannel::PendingSources() const {
  std::vector<absl::Span<const uint8_t>> all;
  for (const auto& [operation, send] : sends_) {
    all.insert(all.end(), send.payload->source.begin(), send.payload->source.end());
  }
  return all;
}

PeerId SimChannel::EndpointTo(const std::string& address) const {
  for (const auto& [peer, endpoint] : endpoints_) {
    if (endpoint.address == address) return peer;
  }
  return PeerId();
}

void SimChannel::FinishReceive(OperationId operation, absl::Status status) {
  if (receives_.erase(operation) == 0) return;
  ChannelEvent event;
  event.kind = ChannelEvent::Kind::kReceiveDone;
  event.operation = operation;
  event.status = std::move(status);
  events_.push_back(std::move(event));
}

void SimChannel::FinishSend(OperationId operation, absl::Status status) {
  auto it = sends_.find(operation);
  if (it == sends_.end()) return;
  it->second.payload->send_ended = true;
  sends_.erase(it);
  ChannelEvent event;
  event.kind = ChannelEvent::Kind::kSendDone;
  event.operation = operation;
  event.status = std::move(status);
  events_.push_back(std::move(event));
}

}  // namespace sluice
