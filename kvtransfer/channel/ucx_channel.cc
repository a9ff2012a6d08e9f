#include "kvtransfer/channel/ucx_channel.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "kvtransfer/channel/ucx_context.h"
#include "kvtransfer/channel/ucx_lanes.h"

namespace sluice {
namespace {

constexpr unsigned kActiveMessageId = 17;
constexpr absl::string_view kAddressMagic = "SLU1";
constexpr size_t kIdBytes = sizeof(uint64_t);
constexpr size_t kMinHeaderBytes = 1024;
constexpr size_t kMaxRemotes = 16384;  // remembered; those without an endpoint go first
constexpr int kProgressPerPoll = 256;
constexpr size_t kEventsPerPoll = 64;
constexpr absl::Duration kCloseTimeout = absl::Seconds(2);

class UcxChannel : public KvChannel {
 public:
  static absl::StatusOr<std::unique_ptr<KvChannel>> Create(const UcxOptions& options);
  ~UcxChannel() override;

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
  void Wake() override;
  size_t max_header_bytes() const override {
    return context_->max_am_header_bytes() - sizeof(Prefix);
  }
  std::vector<PeerTransport> Transports() const override;

 private:
  // Payloads pending in one direction, and since when.
  struct Activity {
    int num_pending = 0;
    absl::Time since;
    absl::Duration busy;
    uint64_t bytes = 0;
    void Begin() {
      if (num_pending++ == 0) since = MonotonicNow();
    }
    void End() {
      if (--num_pending == 0) busy += MonotonicNow() - since;
    }
  };
  // Before every header: who sends it, through which of its endpoints to us (they are numbered
  // upwards), and which endpoint of ours that one was made in answer to (0: none).
  struct Prefix {
    uint64_t channel_id = 0;
    uint64_t generation = 0;
    uint64_t answers = 0;
  };
  // What is known of another channel, connected or not. A generation above the known one that does
  // not answer our endpoint means: the peer gave up its endpoint and made a new one. Ours belongs
  // to the old one then, and over shared memory nothing else would tell.
  struct Remote {
    PeerId peer;
    uint64_t heard = 0;  // highest generation heard
    uint64_t burnt = 0;  // generations up to here belong to endpoints that we gave up
  };
  struct Peer {
    UcxChannel* channel = nullptr;
    PeerId id;
    uint64_t remote_id = 0;
    uint64_t answers = 0;
    uint64_t remote_generation = 0;  // 0: not heard of yet
    std::string name;
    ucp_ep_h endpoint = nullptr;
    bool failed = false;
    bool described = false;
    std::string lanes;
    std::string transport;
    Activity sending;
    Activity receiving;
  };
  // UCX reads `header` and `iov` until the operation ends.
  struct Operation {
    UcxChannel* channel = nullptr;
    OperationId id;
    PeerId peer;
    bool is_send = false;
    std::string header;
    std::vector<ucp_dt_iov_t> iov;
    uint64_t payload_bytes = 0;
  };
  struct Payload {
    PeerId peer;
    void* descriptor = nullptr;  // UCX's; eager: the bytes themselves
    std::string copy;            // eager, when UCX lends nothing
    uint64_t bytes = 0;
    bool rendezvous = false;
  };
  struct Closing {
    std::unique_ptr<Peer> peer;  // UCX may still name it in a callback
    void* request = nullptr;
  };

  UcxChannel() = default;
  absl::Status Init(const UcxOptions& options);

  static ucs_status_t OnActiveMessage(void* self, const void* header, size_t header_bytes,
                                      void* data, size_t data_bytes,
                                      const ucp_am_recv_param_t* param);
  static void OnSent(void* request, ucs_status_t status, void* operation);
  static void OnReceived(void* request, ucs_status_t status, size_t bytes, void* operation);
  static void OnEndpointError(void* peer, ucp_ep_h endpoint, ucs_status_t status);

  Operation* NewOperation(OperationId id, PeerId peer, bool is_send);
  void Finish(Operation* operation, ucs_status_t status);
  void Fail(Peer* peer, absl::Status status);
  PeerId Heard(const Prefix& prefix);
  void Release(Payload* payload);
  void Describe(Peer* peer) const;
  void CheckTransport(Peer* peer);
  void ReapClosing();
  Remote& RemoteOf(uint64_t channel_id);

  // Constant after Init.
  UcxOptions options_;
  uint64_t local_id_ = 0;
  std::string address_;
  int wake_fd_ = -1;
  int epoll_fd_ = -1;

  // Owned by the transfer thread. `context_` goes last: its end may still call back.
  std::unique_ptr<UcxContext> context_;
  absl::flat_hash_map<PeerId, std::unique_ptr<Peer>> peers_;
  absl::flat_hash_map<uint64_t, Remote> remotes_;  // by channel id
  std::vector<Closing> closing_;
  absl::flat_hash_set<Operation*> operations_;
  absl::flat_hash_map<PayloadId, Payload> payloads_;
  std::vector<ChannelEvent> events_;
  uint64_t last_peer_ = 0;
  uint64_t last_payload_ = 0;
};

absl::StatusOr<std::unique_ptr<KvChannel>> UcxChannel::Create(const UcxOptions& options) {
  std::unique_ptr<UcxChannel> channel(new UcxChannel);
  SLUICE_RETURN_IF_ERROR(channel->Init(options));
  return std::unique_ptr<KvChannel>(std::move(channel));
}

absl::Status UcxChannel::Init(const UcxOptions& options) {
  options_ = options;
  SLUICE_ASSIGN_OR_RETURN(context_, UcxContext::Create(options));
  if (context_->max_am_header_bytes() < kMinHeaderBytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "UCX carries headers of only ", context_->max_am_header_bytes(), " bytes here"));
  }
  ucp_am_handler_param_t handler = {};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS;
  handler.id = kActiveMessageId;
  handler.cb = &UcxChannel::OnActiveMessage;
  handler.arg = this;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA;
  SLUICE_RETURN_IF_ERROR(UcxStatus(ucp_worker_set_am_recv_handler(context_->worker(), &handler),
                                   "setting the message handler"));

  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (wake_fd_ < 0 || epoll_fd_ < 0) return absl::ResourceExhaustedError("out of descriptors");
  for (int fd : {wake_fd_, context_->event_fd()}) {
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
      return absl::InternalError(absl::StrCat("epoll_ctl: errno ", errno));
    }
  }

  // Address: magic, channel id, a name for people (length u8), UCX's worker address.
  local_id_ = RandomUint64();
  char host[65] = {};
  gethostname(host, sizeof(host) - 1);
  std::string name = absl::StrCat(host, ":", getpid());
  SLUICE_ASSIGN_OR_RETURN(std::string worker_address, context_->WorkerAddress());
  address_ = std::string(kAddressMagic);
  address_.append(reinterpret_cast<const char*>(&local_id_), sizeof(local_id_));
  address_.push_back(static_cast<char>(name.size()));
  absl::StrAppend(&address_, name, worker_address);
  return absl::OkStatus();
}

UcxChannel::~UcxChannel() {
  while (!peers_.empty()) Disconnect(peers_.begin()->first);
  for (auto& [id, payload] : payloads_) Release(&payload);
  // Let UCX end what is pending; what it has not ended by then ends with the worker.
  absl::Time deadline = MonotonicNow() + kCloseTimeout;
  while (context_ != nullptr && (!closing_.empty() || !operations_.empty()) &&
         MonotonicNow() < deadline) {
    if (ucp_worker_progress(context_->worker()) == 0) usleep(100);
    ReapClosing();
  }
  context_.reset();
  for (Operation* operation : operations_) delete operation;
  if (epoll_fd_ >= 0) close(epoll_fd_);
  if (wake_fd_ >= 0) close(wake_fd_);
}

absl::StatusOr<PeerId> UcxChannel::Connect(const std::string& address) {
  absl::string_view rest = address;
  if (rest.size() < kAddressMagic.size() + kIdBytes + 1 ||
      rest.substr(0, kAddressMagic.size()) != kAddressMagic) {
    return absl::InvalidArgumentError("not the address of a UCX channel");
  }
  rest.remove_prefix(kAddressMagic.size());
  uint64_t remote_id;
  std::memcpy(&remote_id, rest.data(), sizeof(remote_id));
  rest.remove_prefix(sizeof(remote_id));
  size_t name_bytes = static_cast<uint8_t>(rest[0]);
  rest.remove_prefix(1);
  if (rest.size() <= name_bytes) return absl::InvalidArgumentError("UCX address cut short");
  Remote& remote = RemoteOf(remote_id);
  if (remote.peer != PeerId()) return remote.peer;

  auto peer = std::make_unique<Peer>();
  peer->channel = this;
  peer->id = PeerId(++last_peer_);
  peer->remote_id = remote_id;
  peer->name = std::string(rest.substr(0, name_bytes));
  std::string worker_address(rest.substr(name_bytes));
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(worker_address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &UcxChannel::OnEndpointError;
  params.err_handler.arg = peer.get();
  ucs_status_t status = ucp_ep_create(context_->worker(), &params, &peer->endpoint);
  if (status != UCS_OK) return UcxStatus(status, absl::StrCat("connecting to ", peer->name));
  if (remote.heard > remote.burnt) peer->answers = peer->remote_generation = remote.heard;
  PeerId id = peer->id;
  remote.peer = id;
  peers_[id] = std::move(peer);
  return id;
}

void UcxChannel::Disconnect(PeerId id) {
  auto it = peers_.find(id);
  if (it == peers_.end()) return;
  Closing closing;
  closing.peer = std::move(it->second);
  peers_.erase(it);
  Remote& remote = RemoteOf(closing.peer->remote_id);
  remote.peer = PeerId();
  remote.burnt = std::max(remote.burnt, closing.peer->remote_generation);
  // FORCE: no flush, which a dead peer would never answer; pending requests end with an error.
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  ucs_status_ptr_t request = ucp_ep_close_nbx(closing.peer->endpoint, &param);
  closing.peer->endpoint = nullptr;
  if (UCS_PTR_IS_PTR(request)) closing.request = request;
  closing_.push_back(std::move(closing));
}

absl::Status UcxChannel::Send(PeerId id, std::string header,
                              std::vector<absl::Span<const uint8_t>> payload,
                              OperationId operation_id) {
  auto it = peers_.find(id);
  if (it == peers_.end()) return absl::UnavailableError("no such endpoint");
  Peer* peer = it->second.get();
  if (peer->failed) return absl::UnavailableError("the endpoint has failed");
  if (header.size() > max_header_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("header of ", header.size(), " bytes"));
  }
  Operation* operation = NewOperation(operation_id, id, /*is_send=*/true);
  const Prefix prefix{local_id_, id.value, peer->answers};
  operation->header.reserve(sizeof(prefix) + header.size());
  operation->header.append(reinterpret_cast<const char*>(&prefix), sizeof(prefix));
  operation->header.append(header);
  for (const absl::Span<const uint8_t>& span : payload) {
    if (span.empty()) continue;
    operation->iov.push_back({const_cast<uint8_t*>(span.data()), span.size()});
    operation->payload_bytes += span.size();
  }
  if (operation->payload_bytes > 0) peer->sending.Begin();

  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.cb.send = &UcxChannel::OnSent;
  param.user_data = operation;
  param.flags = operation->payload_bytes <= options_.eager_max_bytes ? UCP_AM_SEND_FLAG_EAGER
                                                                     : UCP_AM_SEND_FLAG_RNDV;
  const void* buffer = nullptr;
  size_t count = 0;
  if (operation->iov.size() == 1) {  // contiguous: what RDMA moves without a copy
    buffer = operation->iov[0].buffer;
    count = operation->iov[0].length;
  } else if (operation->iov.size() > 1) {
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
    param.datatype = ucp_dt_make_iov();
    buffer = operation->iov.data();
    count = operation->iov.size();
  }
  ucs_status_ptr_t request =
      ucp_am_send_nbx(peer->endpoint, kActiveMessageId, operation->header.data(),
                      operation->header.size(), buffer, count, &param);
  // A pointer: OnSent is or was called.
  if (!UCS_PTR_IS_PTR(request)) Finish(operation, UCS_PTR_RAW_STATUS(request));
  return absl::OkStatus();
}

absl::Status UcxChannel::Receive(PayloadId id, std::vector<absl::Span<uint8_t>> destination,
                                 OperationId operation_id) {
  auto it = payloads_.find(id);
  if (it == payloads_.end()) return absl::NotFoundError("no such payload");
  Payload payload = std::move(it->second);
  payloads_.erase(it);
  uint64_t destination_bytes = 0;
  for (const absl::Span<uint8_t>& span : destination) destination_bytes += span.size();
  if (destination_bytes != payload.bytes) {
    Release(&payload);
    return absl::InvalidArgumentError(absl::StrCat("destination of ", destination_bytes,
                                                   " bytes for a payload of ", payload.bytes));
  }
  Operation* operation = NewOperation(operation_id, payload.peer, /*is_send=*/false);
  operation->payload_bytes = payload.bytes;
  auto peer = peers_.find(payload.peer);
  if (peer != peers_.end()) peer->second->receiving.Begin();

  if (!payload.rendezvous) {
    const char* from = payload.descriptor != nullptr ? static_cast<const char*>(payload.descriptor)
                                                     : payload.copy.data();
    for (const absl::Span<uint8_t>& span : destination) {
      if (!span.empty()) std::memcpy(span.data(), from, span.size());
      from += span.size();
    }
    Release(&payload);
    Finish(operation, UCS_OK);
    return absl::OkStatus();
  }
  for (const absl::Span<uint8_t>& span : destination) {
    if (!span.empty()) operation->iov.push_back({span.data(), span.size()});
  }
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = &UcxChannel::OnReceived;
  param.user_data = operation;
  void* buffer = operation->iov[0].buffer;
  size_t count = operation->iov[0].length;
  if (operation->iov.size() > 1) {
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
    param.datatype = ucp_dt_make_iov();
    buffer = operation->iov.data();
    count = operation->iov.size();
  }
  ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(context_->worker(), payload.descriptor, buffer, count, &param);
  if (!UCS_PTR_IS_PTR(request)) Finish(operation, UCS_PTR_RAW_STATUS(request));
  return absl::OkStatus();
}

void UcxChannel::Drop(PayloadId id) {
  auto it = payloads_.find(id);
  if (it == payloads_.end()) return;
  Release(&it->second);
  payloads_.erase(it);
}

bool UcxChannel::Poll(std::vector<ChannelEvent>* events) {
  bool moved = false;
  for (int i = 0; i < kProgressPerPoll && events_.size() < kEventsPerPoll; ++i) {
    if (ucp_worker_progress(context_->worker()) == 0) break;
    moved = true;
  }
  ReapClosing();
  moved |= !events_.empty();
  for (ChannelEvent& event : events_) events->push_back(std::move(event));
  events_.clear();
  return moved;
}

void UcxChannel::WaitForActivity(absl::Duration timeout) {
  if (!events_.empty()) return;
  // The descriptor is only good after a successful arm; BUSY means there is something to progress.
  if (ucp_worker_arm(context_->worker()) != UCS_OK) return;
  int64_t milliseconds = absl::ToInt64Milliseconds(absl::Ceil(timeout, absl::Milliseconds(1)));
  milliseconds = std::clamp<int64_t>(milliseconds, 0, 3600 * 1000);
  epoll_event ready[2];
  int n = epoll_wait(epoll_fd_, ready, 2, static_cast<int>(milliseconds));
  for (int i = 0; i < n; ++i) {
    if (ready[i].data.fd != wake_fd_) continue;
    uint64_t count;
    [[maybe_unused]] ssize_t read_bytes = read(wake_fd_, &count, sizeof(count));
  }
}

void UcxChannel::Wake() {
  uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_fd_, &one, sizeof(one));
}

std::vector<PeerTransport> UcxChannel::Transports() const {
  std::vector<PeerTransport> transports;
  for (const auto& [id, peer] : peers_) {
    if (!peer->described && !peer->failed) Describe(peer.get());
    PeerTransport transport;
    transport.peer = peer->name;
    transport.transport = peer->transport;
    transport.lanes = peer->lanes;
    transport.bytes_sent = peer->sending.bytes;
    transport.bytes_received = peer->receiving.bytes;
    absl::Time now = MonotonicNow();
    auto busy = [now](const Activity& activity) {
      return activity.busy +
             (activity.num_pending > 0 ? now - activity.since : absl::ZeroDuration());
    };
    transport.busy_sending = busy(peer->sending);
    transport.busy_receiving = busy(peer->receiving);
    transports.push_back(std::move(transport));
  }
  return transports;
}

ucs_status_t UcxChannel::OnActiveMessage(void* self, const void* header, size_t header_bytes,
                                         void* data, size_t data_bytes,
                                         const ucp_am_recv_param_t* param) {
  auto* channel = static_cast<UcxChannel*>(self);
  Prefix prefix;
  if (header_bytes < sizeof(prefix)) return UCS_OK;  // not ours: the payload is dropped
  std::memcpy(&prefix, header, sizeof(prefix));
  ChannelEvent event;
  event.kind = ChannelEvent::Kind::kMessage;
  event.peer = channel->Heard(prefix);
  event.header.assign(static_cast<const char*>(header) + sizeof(prefix),
                      header_bytes - sizeof(prefix));
  bool keep = false;
  if (data_bytes > 0) {
    Payload payload;
    payload.peer = event.peer;
    payload.bytes = data_bytes;
    payload.rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
    keep = payload.rendezvous || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_DATA) != 0;
    if (keep) {
      payload.descriptor = data;
    } else {
      payload.copy.assign(static_cast<const char*>(data), data_bytes);
    }
    event.payload = PayloadId(++channel->last_payload_);
    event.payload_bytes = data_bytes;
    channel->payloads_.emplace(event.payload, std::move(payload));
  }
  channel->events_.push_back(std::move(event));
  return keep ? UCS_INPROGRESS : UCS_OK;
}

void UcxChannel::OnSent(void* request, ucs_status_t status, void* user_data) {
  auto* operation = static_cast<Operation*>(user_data);
  operation->channel->Finish(operation, status);
  ucp_request_free(request);
}

void UcxChannel::OnReceived(void* request, ucs_status_t status, size_t, void* user_data) {
  auto* operation = static_cast<Operation*>(user_data);
  operation->channel->Finish(operation, status);
  ucp_request_free(request);
}

void UcxChannel::OnEndpointError(void* arg, ucp_ep_h, ucs_status_t status) {
  auto* peer = static_cast<Peer*>(arg);
  // Not while it is being closed: the owner has given it up already.
  if (peer->endpoint != nullptr) {
    peer->channel->Fail(peer, UcxStatus(status, absl::StrCat("endpoint to ", peer->name)));
  }
}

UcxChannel::Operation* UcxChannel::NewOperation(OperationId id, PeerId peer, bool is_send) {
  auto* operation = new Operation;
  operation->channel = this;
  operation->id = id;
  operation->peer = peer;
  operation->is_send = is_send;
  operations_.insert(operation);
  return operation;
}

void UcxChannel::Finish(Operation* operation, ucs_status_t status) {
  ChannelEvent event;
  event.kind =
      operation->is_send ? ChannelEvent::Kind::kSendDone : ChannelEvent::Kind::kReceiveDone;
  event.operation = operation->id;
  event.status = UcxStatus(status, operation->is_send ? "send" : "receive");
  events_.push_back(std::move(event));
  auto it = peers_.find(operation->peer);
  if (it != peers_.end()) {
    Peer* peer = it->second.get();
    Activity& activity = operation->is_send ? peer->sending : peer->receiving;
    if (operation->payload_bytes > 0) {
      activity.End();
      if (status == UCS_OK) activity.bytes += operation->payload_bytes;
    }
    if (status == UCS_OK && !peer->described) CheckTransport(peer);
  }
  operations_.erase(operation);
  delete operation;
}

void UcxChannel::Fail(Peer* peer, absl::Status status) {
  if (peer->failed) return;
  peer->failed = true;
  ChannelEvent event;
  event.kind = ChannelEvent::Kind::kPeerFailed;
  event.peer = peer->id;
  event.status = std::move(status);
  events_.push_back(std::move(event));
}

PeerId UcxChannel::Heard(const Prefix& prefix) {
  Remote& remote = RemoteOf(prefix.channel_id);
  if (prefix.generation <= remote.burnt) return remote.peer;  // a straggler
  remote.heard = std::max(remote.heard, prefix.generation);
  auto it = peers_.find(remote.peer);
  if (it == peers_.end()) return PeerId();
  Peer* peer = it->second.get();
  if (peer->remote_generation == 0 || prefix.answers == peer->id.value) {
    peer->remote_generation = std::max(peer->remote_generation, prefix.generation);
  }
  if (prefix.generation <= peer->remote_generation) return peer->id;
  Fail(peer, absl::UnavailableError(absl::StrCat(peer->name, " has connected anew")));
  return PeerId();
}

UcxChannel::Remote& UcxChannel::RemoteOf(uint64_t channel_id) {
  if (remotes_.size() >= kMaxRemotes && !remotes_.contains(channel_id)) {
    absl::erase_if(remotes_, [](const auto& entry) { return entry.second.peer == PeerId(); });
  }
  return remotes_[channel_id];
}

void UcxChannel::Release(Payload* payload) {
  // Rendezvous: also tells the sender that its send is over.
  if (payload->descriptor != nullptr) {
    ucp_am_data_release(context_->worker(), payload->descriptor);
    payload->descriptor = nullptr;
  }
}

void UcxChannel::Describe(Peer* peer) const {
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

void UcxChannel::CheckTransport(Peer* peer) {
  peer->described = true;
  Describe(peer);
  SLUICE_LOG(Info) << "KV transport to " << peer->name << " is "
                   << (peer->transport.empty() ? "unknown" : peer->transport) << " (" << peer->lanes
                   << ")";
  if (!options_.expect_transport.empty() && peer->transport != "self" &&
      peer->transport != options_.expect_transport) {
    Fail(peer, absl::FailedPreconditionError(
                   absl::StrCat("KV transport to ", peer->name, " is '", peer->transport, "' (",
                                peer->lanes, "), expected '", options_.expect_transport, "'")));
  }
}

void UcxChannel::ReapClosing() {
  for (size_t i = 0; i < closing_.size();) {
    void* request = closing_[i].request;
    if (request != nullptr && ucp_request_check_status(request) == UCS_INPROGRESS) {
      ++i;
      continue;
    }
    if (request != nullptr) ucp_request_free(request);
    closing_.erase(closing_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvChannel>> CreateUcxChannel(const UcxOptions& options) {
  if (!options.expect_transport.empty() && options.expect_transport != "shm" &&
      options.expect_transport != "tcp" && options.expect_transport != "rdma") {
    return absl::InvalidArgumentError(absl::StrCat("expect_transport '", options.expect_transport,
                                                   "' is none of shm, tcp, rdma"));
  }
  return UcxChannel::Create(options);
}

}  // namespace sluice
