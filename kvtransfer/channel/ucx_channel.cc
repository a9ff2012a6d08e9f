#include "kvtransfer/channel/ucx_channel.h"

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "kvtransfer/channel/ucx_address.h"
#include "kvtransfer/channel/ucx_context.h"
#include "kvtransfer/channel/ucx_operations.h"
#include "kvtransfer/channel/ucx_payloads.h"
#include "kvtransfer/channel/ucx_peers.h"
#include "kvtransfer/channel/ucx_wakeup.h"

namespace sluice {
namespace {

constexpr size_t kMinHeaderBytes = 1024;
constexpr int kProgressPerPoll = 256;
constexpr size_t kEventsPerPoll = 64;
// UCX ends what is pending on a closed endpoint within milliseconds, if ever.
constexpr absl::Duration kCloseGrace = absl::Milliseconds(500);
constexpr absl::Duration kShutdownTimeout = absl::Seconds(2);
// A message that its sender does not finish holds up all that came behind it. Longer than a process
// is usually starved, shorter than the peers' patience.
constexpr absl::Duration kMaxBlocked = absl::Milliseconds(600);
// A first message that is sent whole or not at all.
constexpr size_t kMaxTriedBytes = 4096;
// After a knock, to which nothing is answered, UCX's descriptor may stay silent though more
// arrives.
constexpr absl::Duration kExpectation = absl::Milliseconds(200);
constexpr absl::Duration kRenewPause = absl::Seconds(1);
constexpr size_t kMaxOrphans = 4096;

class UcxChannel : public KvChannel {
 public:
  explicit UcxChannel(const UcxOptions& options);
  ~UcxChannel() override;
  absl::Status Init();

  std::string LocalAddress() const override { return address_; }
  absl::StatusOr<PeerId> Connect(const std::string& address) override;
  void Disconnect(PeerId peer) override;
  absl::Status Send(PeerId peer, std::string header, std::vector<absl::Span<const uint8_t>> payload,
                    OperationId operation) override;
  absl::Status Receive(PayloadId payload, std::vector<absl::Span<uint8_t>> destination,
                       OperationId operation) override;
  void Drop(PayloadId payload) override;
  bool Poll(std::vector<ChannelEvent>* events) override;
  void WaitForActivity(absl::Duration timeout) override;
  void Wake() override { wakeup_.Wake(); }
  size_t max_header_bytes() const override {
    return context_->max_am_header_bytes() - sizeof(UcxPeers::Prefix);
  }
  // UCX can tell only by printing, so asking fills in what is not known yet.
  std::vector<PeerTransport> Transports() const override { return peers_.Transports(); }

 private:
  static ucs_status_t OnActiveMessage(void* self, const void* header, size_t header_bytes,
                                      void* data, size_t data_bytes,
                                      const ucp_am_recv_param_t* param);
  struct HeldSend {
    OperationId operation;
    std::string message;
    std::vector<absl::Span<const uint8_t>> payload;
    uint64_t payload_bytes() const;
  };

  // Gives it to UCX. False: not now, for want of a connection, or the peer has failed.
  bool Dispatch(UcxPeers::Peer* peer, HeldSend& send);
  void SendHeld();
  void EndHeld(PeerId peer, const absl::Status& status);
  std::string PrefixFor(const UcxPeers::Peer& peer) const;
  void OnEnded(const UcxOperations::Ended& ended);
  void OnPeerFailed(PeerId peer, absl::Status status);

  // A new UCX worker, with an identity of its own.
  absl::Status Start();
  // Why UCX's worker cannot go on, or nothing.
  std::string Trouble(absl::Time now);
  void Renew(const std::string& reason);

  const UcxOptions options_;
  UcxWakeup wakeup_;
  uint64_t local_id_ = 0;
  std::string address_;

  UcxOperations operations_;
  mutable UcxPeers peers_;
  UcxPayloads payloads_;
  absl::flat_hash_map<PeerId, std::vector<HeldSend>> held_;  // until their peers are connected
  std::vector<ChannelEvent> events_;
  absl::Time expects_until_ = absl::InfinitePast();
  bool owner_is_due_ = false;   // a payload was announced or has arrived
  bool receive_hangs_ = false;  // although its endpoint was closed
  absl::Time next_renewal_ = absl::InfinitePast();
  // Last, so that it ends first: its end may still call back.
  std::unique_ptr<UcxContext> context_;
};

UcxChannel::UcxChannel(const UcxOptions& options)
    : options_(options),
      operations_([this](const UcxOperations::Ended& ended) { OnEnded(ended); }),
      peers_(options.expect_transport,
             [this](PeerId peer, absl::Status status) { OnPeerFailed(peer, std::move(status)); }) {}

absl::Status UcxChannel::Init() {
  SLUICE_RETURN_IF_ERROR(wakeup_.Init());
  return Start();
}

absl::Status UcxChannel::Start() {
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<UcxContext> context, UcxContext::Create(options_));
  if (context->max_am_header_bytes() < kMinHeaderBytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "UCX carries headers of only ", context->max_am_header_bytes(), " bytes here"));
  }
  SLUICE_RETURN_IF_ERROR(context->SetMessageHandler(&UcxChannel::OnActiveMessage, this));
  UcxAddress address;
  address.channel_id = RandomUint64();
  address.name = options_.name;
  if (address.name.empty()) {
    char host[65] = {};
    gethostname(host, sizeof(host) - 1);
    address.name = absl::StrCat(host, ":", getpid());
  }
  SLUICE_ASSIGN_OR_RETURN(address.worker, context->WorkerAddress());
  local_id_ = address.channel_id;
  address_ = EncodeUcxAddress(address);
  context_ = std::move(context);
  return absl::OkStatus();
}

UcxChannel::~UcxChannel() {
  if (context_ == nullptr) return;
  for (PeerId peer : peers_.ids()) Disconnect(peer);
  payloads_.ReleaseAll(context_->worker());
  // Let UCX end what is pending; what it has not ended by then ends with the worker.
  const absl::Time deadline = MonotonicNow() + kShutdownTimeout;
  while (operations_.num_pending() > 0 && MonotonicNow() < deadline) {
    if (ucp_worker_progress(context_->worker()) == 0) usleep(100);
  }
}

absl::StatusOr<PeerId> UcxChannel::Connect(const std::string& address) {
  SLUICE_ASSIGN_OR_RETURN(UcxAddress parsed, ParseUcxAddress(address));
  return peers_.Connect(context_->worker(), parsed);
}

absl::Status UcxChannel::Send(PeerId id, std::string header,
                              std::vector<absl::Span<const uint8_t>> payload,
                              OperationId operation) {
  UcxPeers::Peer* peer = peers_.Find(id);
  if (peer == nullptr) return absl::UnavailableError("no such endpoint");
  if (peer->failed) return absl::UnavailableError("the endpoint has failed");
  if (header.size() > max_header_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("header of ", header.size(), " bytes"));
  }
  HeldSend send{operation, PrefixFor(*peer) + header, std::move(payload)};
  if (send.payload_bytes() > 0) peer->sending.Begin();
  if (!held_.contains(id) && Dispatch(peer, send)) return absl::OkStatus();
  if (peer->failed) {  // trying has shown it
    if (send.payload_bytes() > 0) peer->sending.End();
    return absl::UnavailableError("the endpoint has failed");
  }
  held_[id].push_back(std::move(send));
  return absl::OkStatus();
}

uint64_t UcxChannel::HeldSend::payload_bytes() const {
  uint64_t bytes = 0;
  for (const absl::Span<const uint8_t>& span : payload) bytes += span.size();
  return bytes;
}

std::string UcxChannel::PrefixFor(const UcxPeers::Peer& peer) const {
  const UcxPeers::Prefix prefix{local_id_, peer.id.value, peer.answers};
  return std::string(reinterpret_cast<const char*>(&prefix), sizeof(prefix));
}

// Over TCP, whatever UCX 1.13 cannot send at once starts a handshake of its own, and if the peer
// dies when TCP has just connected, the handshake's failure ends this process. So the first message
// is sent at once or not at all; if it is too large for that, a knock goes before it.
bool UcxChannel::Dispatch(UcxPeers::Peer* peer, HeldSend& send) {
  if (!peer->connected) {
    const bool whole = send.payload.empty() && send.message.size() <= kMaxTriedBytes;
    const absl::Status tried =
        UcxOperations::TrySend(peer->endpoint, whole ? send.message : PrefixFor(*peer));
    if (peer->failed) return false;
    if (absl::IsUnavailable(tried) && MonotonicNow() < peer->connecting_until) return false;
    peer->connected = true;  // other errors come again
    if (whole && tried.ok()) {
      OnEnded({send.operation, peer->id, /*is_send=*/true, 0, absl::OkStatus()});
      return true;
    }
  }
  operations_.Send(peer->endpoint, send.operation, peer->id, std::move(send.message), send.payload,
                   options_.eager_max_bytes);
  return true;
}

void UcxChannel::SendHeld() {
  std::vector<PeerId> ids;
  for (const auto& [id, sends] : held_) ids.push_back(id);
  for (PeerId id : ids) {
    UcxPeers::Peer* peer = peers_.Find(id);
    const auto it = held_.find(id);
    if (peer == nullptr || it == held_.end()) continue;
    std::vector<HeldSend> sends = std::move(it->second);
    held_.erase(it);
    size_t num_sent = 0;
    while (num_sent < sends.size() && !peer->failed && Dispatch(peer, sends[num_sent])) ++num_sent;
    sends.erase(sends.begin(), sends.begin() + static_cast<std::ptrdiff_t>(num_sent));
    if (sends.empty()) continue;
    held_[id] = std::move(sends);
    if (peer->failed) EndHeld(id, absl::UnavailableError("the endpoint has failed"));
  }
}

void UcxChannel::EndHeld(PeerId id, const absl::Status& status) {
  const auto it = held_.find(id);
  if (it == held_.end()) return;
  const std::vector<HeldSend> sends = std::move(it->second);
  held_.erase(it);
  for (const HeldSend& send : sends) {
    OnEnded({send.operation, id, /*is_send=*/true, send.payload_bytes(), status});
  }
}

void UcxChannel::Disconnect(PeerId peer) {
  EndHeld(peer, absl::UnavailableError("the endpoint was closed"));
  peers_.Close(peer, kCloseGrace);
}

absl::Status UcxChannel::Receive(PayloadId id, std::vector<absl::Span<uint8_t>> destination,
                                 OperationId operation) {
  std::optional<UcxPayloads::Payload> payload = payloads_.Take(id);
  if (!payload.has_value()) return absl::NotFoundError("no such payload");
  uint64_t destination_bytes = 0;
  for (const absl::Span<uint8_t>& span : destination) destination_bytes += span.size();
  if (destination_bytes != payload->bytes) {
    UcxPayloads::Release(context_->worker(), *payload);
    return absl::InvalidArgumentError(absl::StrCat("destination of ", destination_bytes,
                                                   " bytes for a payload of ", payload->bytes));
  }
  if (UcxPeers::Peer* peer = peers_.Find(payload->peer); peer != nullptr) peer->receiving.Begin();
  if (payload->rendezvous) {
    operations_.Receive(context_->worker(), payload->descriptor, operation, payload->peer,
                        destination);
    return absl::OkStatus();
  }
  UcxPayloads::CopyEager(*payload, destination);
  UcxPayloads::Release(context_->worker(), *payload);
  OnEnded({operation, payload->peer, /*is_send=*/false, payload->bytes, absl::OkStatus()});
  return absl::OkStatus();
}

void UcxChannel::Drop(PayloadId id) {
  if (std::optional<UcxPayloads::Payload> payload = payloads_.Take(id); payload.has_value()) {
    UcxPayloads::Release(context_->worker(), *payload);
  }
}

bool UcxChannel::Poll(std::vector<ChannelEvent>* events) {
  bool moved = false;
  for (int i = 0; i < kProgressPerPoll && events_.size() < kEventsPerPoll && !owner_is_due_; ++i) {
    if (ucp_worker_progress(context_->worker()) == 0) break;
    moved = true;
  }
  if (moved) wakeup_.OnMoved();
  if (!held_.empty()) SendHeld();
  const absl::Time now = MonotonicNow();
  for (PeerId peer : peers_.TakeClosed(now)) {
    operations_.OrphanSends(peer, absl::UnavailableError("the endpoint was closed"));
    receive_hangs_ |= operations_.HasReceives(peer);
  }
  if (now >= next_renewal_) {
    if (const std::string trouble = Trouble(now); !trouble.empty()) Renew(trouble);
  }
  moved |= !events_.empty();
  for (ChannelEvent& event : events_) events->push_back(std::move(event));
  events_.clear();
  owner_is_due_ = false;
  return moved;
}

void UcxChannel::WaitForActivity(absl::Duration timeout) {
  if (!events_.empty()) return;
  timeout = std::min(timeout, peers_.NextClosed() - MonotonicNow());
  const bool pending = operations_.num_pending() > 0 || !held_.empty() ||
                       (expects_until_ != absl::InfinitePast() && MonotonicNow() < expects_until_);
  wakeup_.Wait(context_->worker(), context_->event_fd(), pending, timeout);
}

std::string UcxChannel::Trouble(absl::Time now) {
  if (receive_hangs_) return "a receive does not end";
  if (operations_.num_orphans() > kMaxOrphans) return "too many sends that do not end";
  if (wakeup_.BlockedFor(now) >= kMaxBlocked) return "a message was never finished by its sender";
  return "";
}

void UcxChannel::Renew(const std::string& reason) {
  next_renewal_ = MonotonicNow() + kRenewPause;
  std::unique_ptr<UcxContext> old = std::move(context_);
  if (absl::Status started = Start(); !started.ok()) {
    SLUICE_LOG(Error) << "KV transport is stuck (" << reason << ") and not renewed: " << started;
    context_ = std::move(old);
    return;
  }
  SLUICE_LOG(Warning) << "KV transport is renewed: " << reason;
  const absl::Status status =
      absl::UnavailableError(absl::StrCat("KV transport renewed: ", reason));
  payloads_.ReleaseAll(old->worker());
  peers_.FailAll(status);
  old.reset();
  payloads_.ForgetAll();
  // Nothing can touch the memory of an operation any more.
  operations_.EndAll(status);
  receive_hangs_ = false;
  wakeup_.OnNewWorker();
}

ucs_status_t UcxChannel::OnActiveMessage(void* self, const void* header, size_t header_bytes,
                                         void* data, size_t data_bytes,
                                         const ucp_am_recv_param_t* param) {
  auto* channel = static_cast<UcxChannel*>(self);
  UcxPeers::Prefix prefix;
  if (header_bytes < sizeof(prefix)) return UCS_OK;  // not ours: the payload is dropped
  std::memcpy(&prefix, header, sizeof(prefix));
  ChannelEvent event;
  event.kind = ChannelEvent::Kind::kMessage;
  event.peer = channel->peers_.Heard(prefix);
  if (header_bytes == sizeof(prefix) && data_bytes == 0) {  // a knock
    channel->expects_until_ = MonotonicNow() + kExpectation;
    return UCS_OK;
  }
  event.header.assign(static_cast<const char*>(header) + sizeof(prefix),
                      header_bytes - sizeof(prefix));
  bool keep = false;
  if (data_bytes > 0) {
    event.payload = channel->payloads_.Announce(event.peer, data, data_bytes, param, &keep);
    event.payload_bytes = data_bytes;
    channel->owner_is_due_ = true;
  }
  channel->events_.push_back(std::move(event));
  return keep ? UCS_INPROGRESS : UCS_OK;
}

void UcxChannel::OnEnded(const UcxOperations::Ended& ended) {
  ChannelEvent event;
  event.kind = ended.is_send ? ChannelEvent::Kind::kSendDone : ChannelEvent::Kind::kReceiveDone;
  event.operation = ended.id;
  event.status = ended.status;
  events_.push_back(std::move(event));
  UcxPeers::Peer* peer = peers_.Find(ended.peer);
  if (peer == nullptr) return;
  UcxPeers::Activity& activity = ended.is_send ? peer->sending : peer->receiving;
  if (ended.payload_bytes > 0) {
    // The owner reads what has arrived: soon, it is still in the cache.
    owner_is_due_ |= !ended.is_send;
    activity.End();
    if (ended.status.ok()) activity.bytes += ended.payload_bytes;
  }
  if (ended.status.ok()) peers_.CheckTransport(peer);
}

void UcxChannel::OnPeerFailed(PeerId peer, absl::Status status) {
  EndHeld(peer, status);
  ChannelEvent event;
  event.kind = ChannelEvent::Kind::kPeerFailed;
  event.peer = peer;
  event.status = std::move(status);
  events_.push_back(std::move(event));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvChannel>> CreateUcxChannel(const UcxOptions& options) {
  if (!options.expect_transport.empty() && options.expect_transport != "shm" &&
      options.expect_transport != "tcp" && options.expect_transport != "rdma") {
    return absl::InvalidArgumentError(absl::StrCat("expect_transport '", options.expect_transport,
                                                   "' is none of shm, tcp, rdma"));
  }
  auto channel = std::make_unique<UcxChannel>(options);
  SLUICE_RETURN_IF_ERROR(channel->Init());
  return std::unique_ptr<KvChannel>(std::move(channel));
}

}  // namespace sluice
