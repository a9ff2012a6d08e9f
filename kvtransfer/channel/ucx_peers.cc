#include "kvtransfer/channel/ucx_peers.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "kvtransfer/channel/ucx_context.h"
#include "kvtransfer/channel/ucx_lanes.h"

namespace sluice {
namespace {

constexpr size_t kMaxRemotes = 16384;  // remembered; those without an endpoint go first
// Between tries to connect to a channel that cannot be reached. UCX reports each try loudly.
constexpr absl::Duration kFirstRetry = absl::Milliseconds(100);
constexpr absl::Duration kLongestRetry = absl::Seconds(2);
// Messages are held back for a connection no longer than this.
constexpr absl::Duration kMaxConnecting = absl::Milliseconds(500);

// The request that UCX makes of it, or null.
void* ForceClose(ucp_ep_h endpoint) {
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint, &param);
  return UCS_PTR_IS_PTR(request) ? request : nullptr;
}

}  // namespace

void UcxPeers::Activity::Begin() {
  if (num_pending++ == 0) since = MonotonicNow();
}

void UcxPeers::Activity::End() {
  if (--num_pending == 0) busy += MonotonicNow() - since;
}

absl::StatusOr<PeerId> UcxPeers::Connect(ucp_worker_h worker, const UcxAddress& address) {
  Remote& remote = RemoteOf(address.channel_id);
  if (remote.peer != PeerId()) return remote.peer;
  if (MonotonicNow() < remote.retry_at) {
    return absl::UnavailableError(
        absl::StrCat("connecting to ", address.name, " has failed a moment ago"));
  }
  auto peer = std::make_unique<Peer>();
  peer->owner = this;
  peer->id = PeerId(++last_peer_);
  peer->remote_id = address.channel_id;
  peer->name = address.name;
  peer->connecting_until = MonotonicNow() + kMaxConnecting;
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.worker.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &UcxPeers::OnEndpointError;
  params.err_handler.arg = peer.get();
  ucs_status_t status = ucp_ep_create(worker, &params, &peer->endpoint);
  if (status != UCS_OK) {
    absl::Status failure = UcxStatus(status, absl::StrCat("connecting to ", peer->name));
    CountFailure(address.channel_id, address.name, failure);
    return failure;
  }
  Describe(peer.get());
  peer->connected = peer->transport != "tcp";
  if (remote.heard > remote.burnt) peer->answers = peer->remote_generation = remote.heard;
  PeerId id = peer->id;
  remote.peer = id;
  peers_[id] = std::move(peer);
  return id;
}

UcxPeers::Peer* UcxPeers::Find(PeerId id) {
  auto it = peers_.find(id);
  return it == peers_.end() ? nullptr : it->second.get();
}

void UcxPeers::Close(PeerId id, absl::Duration grace) {
  auto it = peers_.find(id);
  if (it == peers_.end()) return;
  Closing closing;
  closing.peer = std::move(it->second);
  closing.until = MonotonicNow() + grace;
  peers_.erase(it);
  Remote& remote = RemoteOf(closing.peer->remote_id);
  remote.peer = PeerId();
  remote.burnt = std::max(remote.burnt, closing.peer->remote_generation);
  if (closing.peer->endpoint == nullptr) return;
  closing.request = ForceClose(std::exchange(closing.peer->endpoint, nullptr));
  closing_.push_back(std::move(closing));
}

std::vector<PeerId> UcxPeers::TakeClosed(absl::Time now) {
  std::vector<PeerId> closed;
  while (!closing_.empty() && closing_.front().until <= now) {
    closed.push_back(closing_.front().peer->id);
    // UCX keeps the request until it is done with it.
    if (closing_.front().request != nullptr) ucp_request_free(closing_.front().request);
    closing_.pop_front();
  }
  return closed;
}

absl::Time UcxPeers::NextClosed() const {
  return closing_.empty() ? absl::InfiniteFuture() : closing_.front().until;
}

void UcxPeers::FailAll(const absl::Status& status) {
  TakeClosed(absl::InfiniteFuture());
  for (auto& [id, peer] : peers_) {
    if (ucp_ep_h endpoint = std::exchange(peer->endpoint, nullptr); endpoint != nullptr) {
      void* const request = ForceClose(endpoint);
      if (request != nullptr) ucp_request_free(request);
    }
    Fail(peer.get(), status);
  }
}

std::vector<PeerId> UcxPeers::ids() const {
  std::vector<PeerId> ids;
  for (const auto& [id, peer] : peers_) ids.push_back(id);
  return ids;
}

PeerId UcxPeers::Heard(const Prefix& prefix) {
  Remote& remote = RemoteOf(prefix.channel_id);
  if (prefix.generation <= remote.burnt) return remote.peer;  // a straggler
  remote.heard = std::max(remote.heard, prefix.generation);
  remote.num_failures = 0;
  remote.retry_at = absl::InfinitePast();
  Peer* peer = Find(remote.peer);
  if (peer == nullptr) return PeerId();
  if (peer->remote_generation == 0 || prefix.answers == peer->id.value) {
    peer->remote_generation = std::max(peer->remote_generation, prefix.generation);
  }
  if (prefix.generation <= peer->remote_generation) return peer->id;
  Fail(peer, absl::UnavailableError(absl::StrCat(peer->name, " has connected anew")));
  return PeerId();
}

void UcxPeers::OnEndpointError(void* arg, ucp_ep_h, ucs_status_t status) {
  auto* peer = static_cast<Peer*>(arg);
  // Not while it is being closed: the owner has given it up already.
  if (peer->endpoint == nullptr) return;
  absl::Status failure = UcxStatus(status, absl::StrCat("endpoint to ", peer->name));
  if (!peer->failed && peer->remote_generation == 0) {
    peer->owner->CountFailure(peer->remote_id, peer->name, failure);
  }
  peer->owner->Fail(peer, std::move(failure));
}

UcxPeers::Remote& UcxPeers::RemoteOf(uint64_t channel_id) {
  if (remotes_.size() >= kMaxRemotes && !remotes_.contains(channel_id)) {
    absl::erase_if(remotes_, [](const auto& entry) { return entry.second.peer == PeerId(); });
  }
  return remotes_[channel_id];
}

void UcxPeers::Fail(Peer* peer, absl::Status status) {
  if (std::exchange(peer->failed, true)) return;
  on_failed_(peer->id, std::move(status));
}

void UcxPeers::CountFailure(uint64_t remote_id, const std::string& name,
                            const absl::Status& status) {
  Remote& remote = RemoteOf(remote_id);
  if (remote.num_failures++ == 0) {
    SLUICE_LOG(Warning) << "no KV transport to " << name << ": " << status;
  }
  const int doublings = std::min(remote.num_failures - 1, 10);
  remote.retry_at = MonotonicNow() + std::min(kLongestRetry, kFirstRetry * (1 << doublings));
}

void UcxPeers::Describe(Peer* peer) {
  char* text = nullptr;
  size_t size_bytes = 0;
  FILE* stream = open_memstream(&text, &size_bytes);
  if (stream == nullptr) return;
  ucp_ep_print_info(peer->endpoint, stream);
  fclose(stream);
  peer->lanes = LanesOf(absl::string_view(text, size_bytes));
  peer->transport = TransportOf(peer->lanes);
  free(text);
}

void UcxPeers::CheckTransport(Peer* peer) {
  if (peer->described || peer->endpoint == nullptr) return;
  peer->described = true;
  Describe(peer);
  SLUICE_LOG(Info) << "KV transport to " << peer->name << " is "
                   << (peer->transport.empty() ? "unknown" : peer->transport) << " (" << peer->lanes
                   << ")";
  if (!expect_transport_.empty() && peer->transport != "self" &&
      peer->transport != expect_transport_) {
    Fail(peer, absl::FailedPreconditionError(
                   absl::StrCat("KV transport to ", peer->name, " is '", peer->transport, "' (",
                                peer->lanes, "), expected '", expect_transport_, "'")));
  }
}

std::vector<PeerTransport> UcxPeers::Transports() {
  std::vector<PeerTransport> transports;
  const absl::Time now = MonotonicNow();
  auto busy = [now](const Activity& activity) {
    return activity.busy + (activity.num_pending > 0 ? now - activity.since : absl::ZeroDuration());
  };
  for (const auto& [id, peer] : peers_) {
    if (!peer->described && !peer->failed) Describe(peer.get());
    PeerTransport transport;
    transport.id = id;
    transport.peer = peer->name;
    transport.transport = peer->transport;
    transport.lanes = peer->lanes;
    transport.bytes_sent = peer->sending.bytes;
    transport.bytes_received = peer->receiving.bytes;
    transport.busy_sending = busy(peer->sending);
    transport.busy_receiving = busy(peer->receiving);
    transports.push_back(std::move(transport));
  }
  return transports;
}

}  // namespace sluice
