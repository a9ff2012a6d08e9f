#include "kvtransfer/agent/peer_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace sluice {

absl::StatusOr<PeerId> PeerTable::Ensure(Incarnation peer, const std::string& address) {
  auto it = peers_.find(peer);
  if (it != peers_.end()) {
    Peer& known = it->second;
    if (known.address == address) return known.endpoint;
    // The peer's channel started anew: nothing is heard through the old endpoint. Transfers go on
    // through the new one, as far as the peer still knows them.
    SLUICE_ASSIGN_OR_RETURN(PeerId endpoint, channel_->Connect(address));
    const PeerId old = std::exchange(known.endpoint, endpoint);
    known.address = address;
    std::erase(known.former, endpoint);
    if (Owners(old).empty()) {
      channel_->Disconnect(old);
    } else {
      known.former.push_back(old);
    }
    return endpoint;
  }
  if (peers_.size() >= options_.max_peers && !EvictIdle()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("endpoints to ", peers_.size(), " peers are in use"));
  }
  SLUICE_ASSIGN_OR_RETURN(PeerId endpoint, channel_->Connect(address));
  peers_.emplace(peer, Peer{endpoint, address,
                            handoff::Liveness(options_.heartbeat_interval, options_.peer_timeout),
                            /*former=*/{}});
  return endpoint;
}

PeerId PeerTable::Endpoint(Incarnation peer) const {
  auto it = peers_.find(peer);
  return it == peers_.end() ? PeerId() : it->second.endpoint;
}

void PeerTable::Remove(Incarnation peer) {
  auto it = peers_.find(peer);
  if (it == peers_.end()) return;
  const std::vector<PeerId> endpoints = Endpoints(peer);
  peers_.erase(it);
  for (const PeerId endpoint : endpoints) {
    if (Owners(endpoint).empty()) channel_->Disconnect(endpoint);
  }
}

std::vector<PeerId> PeerTable::Endpoints(Incarnation peer) const {
  const auto it = peers_.find(peer);
  if (it == peers_.end()) return {};
  std::vector<PeerId> endpoints = it->second.former;
  endpoints.push_back(it->second.endpoint);
  return endpoints;
}

std::vector<Incarnation> PeerTable::Owners(PeerId endpoint) const {
  std::vector<Incarnation> owners;
  for (const auto& [incarnation, peer] : peers_) {
    if (peer.endpoint == endpoint ||
        std::find(peer.former.begin(), peer.former.end(), endpoint) != peer.former.end()) {
      owners.push_back(incarnation);
    }
  }
  return owners;
}

void PeerTable::Attach(Incarnation peer, absl::Time now) {
  auto it = peers_.find(peer);
  if (it != peers_.end()) it->second.liveness.Attach(now);
}

void PeerTable::Detach(Incarnation peer) {
  auto it = peers_.find(peer);
  if (it != peers_.end()) it->second.liveness.Detach();
}

void PeerTable::Heard(Incarnation peer, absl::Time now) {
  auto it = peers_.find(peer);
  if (it != peers_.end()) it->second.liveness.Heard(now);
}

void PeerTable::Forgive(absl::Duration duration) {
  for (auto& [incarnation, peer] : peers_) peer.liveness.Forgive(duration);
}

std::vector<PeerTable::Dead> PeerTable::Tick(absl::Time now) {
  std::vector<Dead> dead;
  for (auto& [incarnation, peer] : peers_) {
    if (peer.liveness.Dead(now)) {
      dead.push_back({incarnation, absl::UnavailableError(
                                       absl::StrCat("no sign of life from the peer for ",
                                                    absl::FormatDuration(options_.peer_timeout)))});
    } else if (peer.liveness.TakeHeartbeat(now)) {
      SendTo(peer.endpoint, incarnation, TransferId(), handoff::Heartbeat{});
    }
  }
  return dead;
}

absl::Time PeerTable::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [incarnation, peer] : peers_) {
    next = std::min(next, peer.liveness.NextDeadline());
  }
  return next;
}

void PeerTable::Send(Incarnation peer, const TransferId& transfer, handoff::Body body) {
  PeerId endpoint = Endpoint(peer);
  if (endpoint != PeerId()) SendTo(endpoint, peer, transfer, std::move(body));
}

void PeerTable::SendTo(PeerId endpoint, Incarnation peer, const TransferId& transfer,
                       handoff::Body body) {
  channel_
      ->Send(endpoint, handoff::Encode({self_, peer, transfer, std::move(body)}), {}, OperationId())
      .IgnoreError();
}

bool PeerTable::EvictIdle() {
  auto oldest = peers_.end();
  for (auto it = peers_.begin(); it != peers_.end(); ++it) {
    if (it->second.liveness.active()) continue;
    if (oldest == peers_.end() ||
        it->second.liveness.last_heard() < oldest->second.liveness.last_heard()) {
      oldest = it;
    }
  }
  if (oldest == peers_.end()) return false;
  Remove(oldest->first);
  return true;
}

}  // namespace sluice
