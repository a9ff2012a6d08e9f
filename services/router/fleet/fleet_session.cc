#include "services/router/fleet/fleet_session.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "services/router/fleet/admin_address.h"
#include "services/router/fleet/wire.h"
#include "services/rpc/fleet_codec.h"

namespace sluice::router {

FleetSession::FleetSession(SessionId id, const FleetSessionOptions& options,
                           grpc::CallbackServerContext* context, FleetListener* listener,
                           std::function<void(SessionId)> on_done)
    : id_(id),
      options_(options),
      context_(context),
      listener_(listener),
      on_done_(std::move(on_done)),
      opened_at_(MonotonicNow()),
      last_write_(opened_at_) {}

void FleetSession::Begin(std::shared_ptr<FleetSession> self) {
  self_ = std::move(self);
  absl::MutexLock lock(&mu_);
  reading_ = true;
  StartRead(incoming_);
}

void FleetSession::Send(v1::RouterMessage message) {
  if (message.ByteSizeLong() > options_.max_message_bytes) return RefuseOrder(message);
  std::string too_slow;
  {
    absl::MutexLock lock(&mu_);
    if (closing_) return;
    if (message.has_welcome()) welcomed_ = message.welcome().error().empty();
    EnqueueLocked(std::move(message));
    if (queue_.size() > options_.max_queued_messages || queued_bytes_ > options_.max_queued_bytes) {
      too_slow = absl::StrCat("it does not read: ", queue_.size(), " messages, ", queued_bytes_,
                              " bytes wait for it");
    }
  }
  if (!too_slow.empty()) Abort(too_slow);
}

void FleetSession::Close(grpc::Status status) {
  absl::MutexLock lock(&mu_);
  BeginCloseLocked(std::move(status), /*drop_queue=*/false);
}

void FleetSession::Abort(const std::string& reason) {
  {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    BeginCloseLocked(grpc::Status(grpc::StatusCode::ABORTED, reason), /*drop_queue=*/true);
    // A write that the worker does not read never ends by itself. Until it has, and Finish was
    // called, the context exists.
    if (!finished_) context_->TryCancel();
  }
  ReportLeft(reason);
}

void FleetSession::Handled() {
  absl::MutexLock lock(&mu_);
  --unhandled_;
  if (!reading_ && !closing_ && unhandled_ < options_.read_window) {
    reading_ = true;
    StartRead(incoming_);
  }
}

void FleetSession::Tick(absl::Time now) {
  std::string abort_reason;
  {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    if (writing_ && now - write_started_ >= options_.write_timeout) {
      abort_reason =
          absl::StrCat("it has not read for ", absl::FormatDuration(options_.write_timeout));
    } else if (!registered_ && now - opened_at_ >= options_.register_timeout) {
      abort_reason =
          absl::StrCat("no registration within ", absl::FormatDuration(options_.register_timeout));
    } else if (welcomed_ && !closing_ && !writing_ &&
               now - last_write_ >= options_.heartbeat_interval) {
      v1::RouterMessage heartbeat;
      heartbeat.mutable_heartbeat();
      EnqueueLocked(std::move(heartbeat));
    }
  }
  if (!abort_reason.empty()) Abort(abort_reason);
}

void FleetSession::OnReadDone(bool ok) {
  if (!ok) {
    {
      absl::MutexLock lock(&mu_);
      reading_ = false;
      BeginCloseLocked(grpc::Status::OK, /*drop_queue=*/true);
    }
    ReportLeft("its stream ended");
    return;
  }
  if (const absl::Status status = HandleIncoming(); !status.ok()) {
    SLUICE_LOG(Warning) << "worker stream " << id_ << ": " << status.message();
    {
      absl::MutexLock lock(&mu_);
      reading_ = false;
      BeginCloseLocked(rpc::ToGrpcStatus(status), /*drop_queue=*/true);
    }
    ReportLeft(std::string(status.message()));
    return;
  }
  absl::MutexLock lock(&mu_);
  reading_ = !closing_ && unhandled_ < options_.read_window;
  if (reading_) StartRead(incoming_);
}

absl::Status FleetSession::HandleIncoming() {
  absl::StatusOr<Event> event = DecodeWorkerMessage(id_, *incoming_);
  const bool is_registration = incoming_->has_register_();
  arena_.Reset();
  incoming_ = google::protobuf::Arena::CreateMessage<v1::WorkerMessage>(&arena_);
  if (!event.ok()) return event.status();
  if (auto* const registered = std::get_if<WorkerRegistered>(&*event)) {
    std::string& address = registered->info.admin_address;
    address = ReachableAdminAddress(address, context_->peer());
  }
  {
    absl::MutexLock lock(&mu_);
    if (closing_) return absl::OkStatus();
    if (is_registration == registered_) {
      return absl::FailedPreconditionError(registered_ ? "registered twice"
                                                       : "the first message must be Register");
    }
    registered_ = true;
    ++unhandled_;
  }
  listener_->OnWorkerEvent(id_, *std::move(event));
  return absl::OkStatus();
}

void FleetSession::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
  last_write_ = MonotonicNow();
  if (!ok) BeginCloseLocked(grpc::Status::OK, /*drop_queue=*/true);
  StartNextWriteLocked();
}

void FleetSession::OnCancel() {
  {
    absl::MutexLock lock(&mu_);
    BeginCloseLocked(grpc::Status::CANCELLED, /*drop_queue=*/true);
  }
  ReportLeft("its stream was broken");
}

void FleetSession::OnDone() {
  ReportLeft("its stream ended");
  on_done_(id_);
  self_.reset();  // perhaps the last reference: nothing may follow
}

void FleetSession::ReportLeft(const std::string& reason) {
  {
    absl::MutexLock lock(&mu_);
    if (!registered_ || left_reported_) return;
    left_reported_ = true;
    ++unhandled_;
  }
  listener_->OnWorkerEvent(id_, WorkerLeft{id_, reason});
}

void FleetSession::RefuseOrder(const v1::RouterMessage& message) {
  const absl::Status why = absl::InvalidArgumentError(
      absl::StrCat("the order has ", message.ByteSizeLong(), " bytes; a message carries ",
                   options_.max_message_bytes));
  SLUICE_LOG(Warning) << "worker stream " << id_ << ": " << why.message();
  std::optional<rpc::RequestEndedEvent> refusal;
  if (message.has_reserve()) refusal = rpc::RefusalOf(message.reserve(), why);
  if (message.has_prefill()) refusal = rpc::RefusalOf(message.prefill(), why);
  if (message.has_run()) refusal = rpc::RefusalOf(message.run(), why);
  if (!refusal.has_value()) return;  // the others are small
  {
    absl::MutexLock lock(&mu_);
    if (closing_) return;  // its end answers for all
    ++unhandled_;
  }
  listener_->OnWorkerEvent(id_, AttemptEnded{id_,
                                             {refusal->request, refusal->attempt},
                                             AttemptEndReason::kFailed,
                                             std::move(refusal->status),
                                             /*stage=*/""});
}

void FleetSession::EnqueueLocked(v1::RouterMessage message) {
  queued_bytes_ += message.ByteSizeLong();
  queue_.push_back(std::move(message));
  StartNextWriteLocked();
}

void FleetSession::StartNextWriteLocked() {
  if (writing_ || finished_) return;
  if (queue_.empty()) {
    queued_bytes_ = 0;
    if (closing_) {
      finished_ = true;
      Finish(final_status_);
    }
    return;
  }
  outgoing_ = std::move(queue_.front());
  queue_.pop_front();
  queued_bytes_ -= std::min(queued_bytes_, outgoing_.ByteSizeLong());
  writing_ = true;
  write_started_ = MonotonicNow();
  // What waits behind it goes into the same packet.
  grpc::WriteOptions options;
  if (!queue_.empty()) options.set_buffer_hint();
  StartWrite(&outgoing_, options);
}

void FleetSession::BeginCloseLocked(grpc::Status status, bool drop_queue) {
  if (drop_queue) queue_.clear();
  if (!closing_) {
    closing_ = true;
    final_status_ = std::move(status);
  }
  StartNextWriteLocked();
}

}  // namespace sluice::router
