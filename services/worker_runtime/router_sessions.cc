#include "services/worker_runtime/router_sessions.h"

#include <optional>
#include <utility>

#include "absl/container/btree_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/block_hash.h"
#include "common/log.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::worker {
namespace {

constexpr absl::string_view kDnsPrefix = "dns:";

// "name:port" of "dns:name:port".
std::string NameOf(absl::string_view router) {
  return std::string(absl::StripPrefix(router, kDnsPrefix));
}

v1::WorkerRole RoleToWire(const std::string& role) {
  if (role == "prefill") return v1::WORKER_ROLE_PREFILL;
  if (role == "decode") return v1::WORKER_ROLE_DECODE;
  return v1::WORKER_ROLE_BOTH;
}

}  // namespace

class RouterSessions::Dialer final : public rpc::AttachHandler {
 public:
  Dialer(RouterSessions* sessions, rpc::AttachOptions options) : sessions_(sessions) {
    client_ = rpc::AttachClient::Start(std::move(options), this);
  }
  // Joins the client's thread before the rest of this goes.
  ~Dialer() override { client_->Stop(); }

  rpc::AttachClient* client() { return client_.get(); }

  v1::WorkerMessage OnConnect(rpc::SessionId) override { return sessions_->MakeRegistration(); }
  void OnWelcome(rpc::SessionId session, const std::string&) override {
    sessions_->Open(session, this);
  }
  void OnMessage(rpc::SessionId session, const v1::RouterMessage& message) override {
    sessions_->Dispatch(session, message);
  }
  v1::WorkerMessage OnHeartbeat(rpc::SessionId session) override {
    return sessions_->MakeLoadReport(session);
  }
  void OnDisconnect(rpc::SessionId session, const absl::Status&) override {
    sessions_->Close(session);
  }

 private:
  RouterSessions* const sessions_;
  std::unique_ptr<rpc::AttachClient> client_;
};

RouterSessions::RouterSessions(RouterSessionsOptions options, WorkerIdentity identity,
                               LoadBoard* board, WorkerMetrics* metrics, const Clock* clock,
                               std::function<bool()> healthy)
    : options_(std::move(options)),
      identity_(std::move(identity)),
      board_(board),
      metrics_(metrics),
      clock_(clock),
      healthy_(std::move(healthy)),
      names_(options_.resolver) {}

RouterSessions::~RouterSessions() { Stop(); }

void RouterSessions::Start(EngineLoop* loop) {
  loop_ = loop;
  absl::btree_set<std::string> names;
  {
    absl::MutexLock lock(&mu_);
    for (const std::string& router : options_.routers) {
      if (!absl::StartsWith(router, kDnsPrefix)) continue;
      names.insert(NameOf(router));
      found_.emplace(NameOf(router), absl::UnavailableError("not looked up yet"));
    }
  }
  UpdateDialers();
  for (const std::string& name : names) {
    resolvers_.emplace_back([this, name] { ResolveLoop(name); });
  }
}

void RouterSessions::Stop() {
  absl::btree_map<std::string, std::unique_ptr<Dialer>> dialers;
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;  // no dialer is added from now on
    stop_.SignalAll();
    dialers.swap(dialers_);
  }
  // All at once, so that a slow one does not keep the others from saying goodbye.
  std::vector<std::thread> stops;
  for (auto& [address, dialer] : dialers) {
    stops.emplace_back([client = dialer->client()] { client->Stop(); });
  }
  for (std::thread& stop : stops) stop.join();
  // Last: in an outage of DNS a lookup takes its time, and no router should wait for it.
  for (std::thread& resolver : resolvers_) resolver.join();
  resolvers_.clear();
}

void RouterSessions::ReportLoadNow() {
  absl::MutexLock lock(&mu_);
  for (auto& [address, dialer] : dialers_) dialer->client()->HeartbeatNow();
}

int RouterSessions::num_attached() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(sessions_.size());
}

std::string RouterSessions::NotAttachedReason() const {
  if (num_attached() > 0) return "";
  const std::string unresolved = names_.Failures();
  return absl::StrCat("not attached to any router (", absl::StrJoin(options_.routers, ", "), ")",
                      unresolved.empty() ? "" : "; ", unresolved);
}

v1::WorkerMessage RouterSessions::MakeRegistration() const {
  v1::WorkerMessage message;
  v1::Register* registration = message.mutable_register_();
  registration->set_worker_id(identity_.worker_id);
  registration->set_incarnation(identity_.incarnation.value);
  registration->set_role(RoleToWire(identity_.role));
  registration->set_model(identity_.model);
  registration->set_fingerprint(identity_.fingerprint.digest);
  registration->set_fingerprint_text(identity_.fingerprint.text);
  registration->set_max_model_len(identity_.max_model_len);
  registration->set_max_num_seqs(identity_.max_num_seqs);
  registration->set_num_kv_blocks(identity_.num_kv_blocks);
  registration->set_kv_block_tokens(kBlockTokens);
  registration->set_kv_address(identity_.kv_address);
  registration->set_isa(identity_.isa);
  registration->set_dtype(identity_.dtype);
  registration->set_admin_address(identity_.admin_address);
  registration->set_protocol_version(std::string(rpc::kProtocolVersion));
  registration->set_vocab_size(identity_.vocab_size);
  return message;
}

v1::WorkerMessage RouterSessions::MakeLoadReport(rpc::SessionId session) {
  v1::WorkerMessage message;
  board_->FillReport(session, healthy_(), clock_->Now(), message.mutable_load());
  return message;
}

void RouterSessions::Open(rpc::SessionId session, Dialer* dialer) {
  board_->OpenSession(session);
  absl::MutexLock lock(&mu_);
  sessions_[session] = dialer;
  metrics_->SetAttachedRouters(static_cast<int>(sessions_.size()));
}

void RouterSessions::Close(rpc::SessionId session) {
  {
    absl::MutexLock lock(&mu_);
    if (sessions_.erase(session) == 0) return;  // was never welcomed
    metrics_->SetAttachedRouters(static_cast<int>(sessions_.size()));
  }
  board_->CloseSession(session);
  if (!loop_->Post(InternalCommand(SessionLostCommand{session}))) {
    SLUICE_LOG(Warning) << "engine loop is stopped or full; a lost router's requests stay until "
                           "their deadlines";
  }
}

void RouterSessions::Dispatch(rpc::SessionId session, const v1::RouterMessage& message) {
  const auto count = [&](const absl::Status& why) {
    metrics_->Ignored(IgnoredReason::kMalformed);
    SLUICE_LOG(Warning) << "router sent a malformed message: " << why.message();
  };
  // Somebody waits for the answer to an order: silence would look like a worker that hangs.
  const auto post_or_refuse = [&](const auto& proto, auto make_command) {
    auto decoded = rpc::Decode(proto);
    if (decoded.ok()) return Post(session, make_command(*std::move(decoded)));
    count(decoded.status());
    const std::optional<rpc::RequestEndedEvent> refusal = rpc::RefusalOf(proto, decoded.status());
    if (refusal.has_value()) SendEnded(session, *refusal);
  };
  switch (message.message_case()) {
    case v1::RouterMessage::kReserve:
      return post_or_refuse(message.reserve(), [&](rpc::SequenceAttempt sequence) {
        return ReserveCommand{session, std::move(sequence)};
      });
    case v1::RouterMessage::kPrefill:
      return post_or_refuse(message.prefill(), [&](rpc::PrefillOrder order) {
        return PrefillCommand{session, std::move(order)};
      });
    case v1::RouterMessage::kRun:
      return post_or_refuse(message.run(), [&](rpc::SequenceAttempt sequence) {
        return RunCommand{session, std::move(sequence)};
      });
    case v1::RouterMessage::kCancel: {
      absl::StatusOr<rpc::CancelOrder> order = rpc::Decode(message.cancel());
      if (!order.ok()) return count(order.status());
      return Post(session, CancelCommand{session, *std::move(order)});
    }
    default:
      metrics_->Ignored(IgnoredReason::kMalformed);  // of a later version, or empty
  }
}

void RouterSessions::Post(rpc::SessionId session, RouterCommand command) {
  if (loop_->Post(std::move(command))) return;
  // An engine thread this far behind cannot keep promises, and a dropped Cancel would leak: the
  // router has to plan anew, elsewhere.
  absl::MutexLock lock(&mu_);
  const auto entry = sessions_.find(session);
  if (entry == sessions_.end()) return;
  entry->second->client()->Break(session,
                                 absl::ResourceExhaustedError("the engine thread's queue is full"));
}

void RouterSessions::Send(rpc::SessionId session, v1::WorkerMessage message) {
  absl::MutexLock lock(&mu_);
  const auto entry = sessions_.find(session);
  if (entry != sessions_.end()) entry->second->client()->Send(session, std::move(message));
}

void RouterSessions::SendGrant(rpc::SessionId session, const rpc::GrantTerms& grant) {
  v1::WorkerMessage message;
  rpc::Encode(grant, message.mutable_grant());
  Send(session, std::move(message));
}

void RouterSessions::SendBusy(rpc::SessionId session, const rpc::BusyAnswer& busy) {
  v1::WorkerMessage message;
  rpc::Encode(busy, message.mutable_busy());
  Send(session, std::move(message));
}

void RouterSessions::SendTokens(rpc::SessionId session,
                                const std::vector<rpc::OutputTokenEvent>& tokens) {
  v1::WorkerMessage message;
  for (const rpc::OutputTokenEvent& token : tokens) {
    rpc::Encode(token, message.mutable_tokens()->add_tokens());
  }
  Send(session, std::move(message));
}

void RouterSessions::SendKvReady(rpc::SessionId session, const rpc::KvReadyEvent& event) {
  v1::WorkerMessage message;
  rpc::Encode(event, message.mutable_kv_ready());
  Send(session, std::move(message));
}

void RouterSessions::SendEnded(rpc::SessionId session, const rpc::RequestEndedEvent& event) {
  v1::WorkerMessage message;
  rpc::Encode(event, message.mutable_ended());
  Send(session, std::move(message));
}

void RouterSessions::SendPreempted(rpc::SessionId session, const SequenceKey& key) {
  v1::WorkerMessage message;
  rpc::EncodePreempted(key.request, key.attempt, message.mutable_preempted());
  Send(session, std::move(message));
}

void RouterSessions::UpdateDialers() {
  std::vector<std::unique_ptr<Dialer>> gone;  // stopped outside of the lock
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return;
    absl::btree_set<std::string> addresses;
    bool complete = true;
    for (const std::string& router : options_.routers) {
      if (!absl::StartsWith(router, kDnsPrefix)) {
        addresses.insert(router);
        continue;
      }
      const auto& found = found_.at(NameOf(router));
      if (found.ok()) {
        addresses.insert(found->begin(), found->end());
      } else {
        complete = false;  // neither an outage of DNS nor a slow lookup may take routers away
      }
    }
    for (const std::string& address : addresses) {
      if (dialers_.contains(address)) continue;
      rpc::AttachOptions attach = options_.attach;
      attach.router_address = address;
      dialers_.emplace(address, std::make_unique<Dialer>(this, std::move(attach)));
    }
    if (!complete) return;
    for (auto it = dialers_.begin(); it != dialers_.end();) {
      if (addresses.contains(it->first) || it->second->client()->attached()) {
        ++it;
      } else {
        gone.push_back(std::move(it->second));
        it = dialers_.erase(it);
      }
    }
  }
}

void RouterSessions::ResolveLoop(const std::string& name) {
  while (true) {
    absl::StatusOr<std::vector<std::string>> found = names_.LookUp(name);
    {
      absl::MutexLock lock(&mu_);
      found_.at(name) = std::move(found);
    }
    UpdateDialers();
    absl::MutexLock lock(&mu_);
    if (stop_.Await(&mu_, absl::Condition(&stopping_), options_.resolve_interval)) return;
  }
}

}  // namespace sluice::worker
