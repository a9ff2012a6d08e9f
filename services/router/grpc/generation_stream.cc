#include "services/router/grpc/generation_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/log.h"

namespace sluice::router {
namespace {

constexpr char kFrontIsFull[] = "too many streams have work waiting";
// Messages that carry prompts back may wait up to this many times max_stream_buffer_bytes
// uncounted.
constexpr int64_t kUncountedBuffers = 16;

int64_t SizeOf(const google::protobuf::Message& message) {
  // An empty message still occupies a frame and our bookkeeping.
  constexpr int64_t kOverheadBytes = 64;
  return static_cast<int64_t>(message.ByteSizeLong()) + kOverheadBytes;
}

// Whether the deadline of a call that began at `created_at` has passed for its client, which then
// resets the stream: on this side it may be due a little later, as gRPC rounds time-outs up, by at
// most 1%, and counts them from the call's arrival.
bool HasPassed(std::chrono::system_clock::time_point deadline,
               std::chrono::system_clock::time_point created_at) {
  constexpr std::chrono::milliseconds kOnTheWay(50);
  const auto now = std::chrono::system_clock::now();
  if (deadline == std::chrono::system_clock::time_point::max()) return false;
  return deadline - now <= kOnTheWay + (deadline - created_at) / 100;
}

}  // namespace

template <typename Response>
GenerationStream<Response>::GenerationStream(GrpcServerShared* shared,
                                             grpc::CallbackServerContext* rpc, const char* method)
    : shared_(shared), rpc_(rpc), method_(method), created_at_(std::chrono::system_clock::now()) {
  shared_->streams.Add(1);
  shared_->context->metrics().streams(Front::kGrpc)->Add(1);
}

template <typename Response>
GenerationStream<Response>::~GenerationStream() {
  {
    absl::MutexLock lock(&mu_);
    DropOutboxLocked();
  }
  call_.reset();
  shared_->context->metrics().streams(Front::kGrpc)->Add(-1);
  shared_->streams.Add(-1);  // last: the server may go once it is zero
}

template <typename Response>
void GenerationStream<Response>::Start(int64_t input_bytes, PlanFn plan) {
  self_ = this->shared_from_this();
  shared_->writes.Add(self_);
  if (shared_->draining) {
    return Refuse(ErrorKind::kNoCapacity, "the router is draining");
  }
  if (shared_->streams.Get() > shared_->options.max_streams) {
    return Refuse(ErrorKind::kQueueFull, "too many streams are open");
  }
  accepted_ = true;
  if (input_bytes <= shared_->context->options().inline_prepare_bytes) {
    if (!RunOnFront([this, plan = std::move(plan)] { Submit(plan()); })) {
      Refuse(ErrorKind::kQueueFull, kFrontIsFull);
    }
    return;
  }
  shared_->prepares.Add(1);
  const bool posted = shared_->context->prepare_pool().Post(
      [shared = shared_, self = self_, plan = std::move(plan)]() mutable {
        self->Prepare(plan);
        self.reset();  // before the server may go
        shared->prepares.Add(-1);
      },
      input_bytes);
  if (!posted) {
    shared_->prepares.Add(-1);
    Refuse(ErrorKind::kQueueFull, "too many long prompts are waiting");
  }
}

template <typename Response>
void GenerationStream<Response>::Prepare(const PlanFn& plan) {
  {
    absl::MutexLock lock(&mu_);
    if (broken_ || finished_) return;  // nobody waits for it any more
  }
  const bool posted =
      RunOnFront([this, planned = plan()]() mutable { Submit(std::move(planned)); });
  if (!posted) Refuse(ErrorKind::kQueueFull, kFrontIsFull);
}

template <typename Response>
void GenerationStream<Response>::Post(std::weak_ptr<GenerationCall> call) {
  const bool posted = RunOnFront([call = std::move(call)] {
    if (const std::shared_ptr<GenerationCall> alive = call.lock()) alive->HandleEvents();
  });
  if (posted) return;
  // The call waits for this turn before it asks for another: without it the stream would hang.
  SLUICE_LOG(Error) << "grpc front: queue full, a stream is cut off";
  absl::MutexLock lock(&mu_);
  if (!finished_) BreakLocked();
}

template <typename Response>
bool GenerationStream<Response>::TryRun(GenerationCall* call) {
  if (!turn_mu_.TryLock()) return false;
  call->HandleEvents();
  turn_mu_.Unlock();
  return true;
}

template <typename Response>
bool GenerationStream<Response>::RunOnFront(std::function<void()> task) {
  return shared_->front->Post([self = this->shared_from_this(), task = std::move(task)] {
    absl::MutexLock turn(&self->turn_mu_);
    task();
  });
}

template <typename Response>
void GenerationStream<Response>::Refuse(ErrorKind kind, absl::string_view message) {
  OnError(ToApiError(MakeError(kind, message)));
}

// ---- In turns ----

template <typename Response>
void GenerationStream<Response>::Submit(absl::StatusOr<GenerationPlan> plan) {
  if (abandoned_) return;
  if (!plan.ok()) return OnError(ToApiError(plan.status()));
  call_ = GenerationCall::Start(shared_->context, *std::move(plan), this, this->weak_from_this());
}

template <typename Response>
void GenerationStream<Response>::OnDelta(const ChoiceDelta& delta) {
  Response response;
  FillResponse(shared_->context->tokenizer(), call_->plan(), delta, &response);
  Enqueue(std::move(response), /*opens=*/delta.first);
}

template <typename Response>
void GenerationStream<Response>::OnComplete(const RequestSummary& summary) {
  Response response;
  response.set_request_id(call_->plan().request_id);
  FillUsage(summary, response.mutable_usage(), response.mutable_timings());
  Enqueue(std::move(response), /*opens=*/false);
  EndWith(grpc::Status::OK);
}

template <typename Response>
void GenerationStream<Response>::OnError(const ApiError& error) {
  {
    // Not once the call has ended: its context may be gone.
    absl::MutexLock lock(&mu_);
    if (!finished_) AddErrorTrailers(error, rpc_);
  }
  EndWith(ToGrpcStatus(error));
}

template <typename Response>
void GenerationStream<Response>::Abandon() {
  abandoned_ = true;
  if (call_ != nullptr) call_->Cancel();
}

template <typename Response>
void GenerationStream<Response>::AbandonOnFront() {
  // A refused stream has no call, and there may be any number of them. With a full queue the call
  // goes with the stream, which is soon.
  if (accepted_) static_cast<void>(RunOnFront([this] { Abandon(); }));
}

template <typename Response>
void GenerationStream<Response>::Enqueue(Response response, bool opens) {
  absl::MutexLock lock(&mu_);
  if (finished_ || ending_ || broken_) return;
  const int64_t bytes = SizeOf(response);
  const int64_t limit = shared_->options.max_stream_buffer_bytes;
  // What finds the way free, or only the message under way before it, does not count either.
  const bool waits_alone = outbox_.size() <= (writing_ ? 1U : 0U);
  const int64_t uncounted_bytes = outbox_bytes_ - counted_bytes_;
  const bool counts =
      !waits_alone && !(opens && uncounted_bytes + bytes <= kUncountedBuffers * limit);
  if (counts && counted_bytes_ + bytes > limit) {
    shared_->context->metrics().slow_client_evictions(Front::kGrpc)->Increment();
    BreakLocked();
    return;
  }
  outbox_bytes_ += bytes;
  if (counts) counted_bytes_ += bytes;
  shared_->context->metrics().buffered_bytes(Front::kGrpc)->Add(static_cast<double>(bytes));
  outbox_.push_back({std::move(response), counts});
  WriteNextLocked();
}

template <typename Response>
void GenerationStream<Response>::EndWith(const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  if (ending_ || finished_) return;
  ending_ = true;
  final_status_ = status;
  WriteNextLocked();
}

template <typename Response>
void GenerationStream<Response>::WriteNextLocked() {
  if (writing_ || finished_) return;
  if (!outbox_.empty() && !broken_) {
    writing_ = has_written_ = true;
    this->StartWrite(&outbox_.front().response);
    return;
  }
  if (!ending_) return;
  finished_ = true;
  seen_at_ = absl::InfiniteFuture();
  shared_->context->metrics().CountGrpcRequest(method_, final_status_.error_code());
  this->Finish(final_status_);
}

template <typename Response>
void GenerationStream<Response>::BreakLocked() {
  // The message being written may wait for the client's window and block even a status: only a
  // reset of the stream gets through. OnCancel follows.
  broken_ = true;
  rpc_->TryCancel();
}

template <typename Response>
void GenerationStream<Response>::EndIfStalled(absl::Time now, absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  if (done_ || broken_ || !(writing_ || finished_)) return;
  seen_at_ = std::min(seen_at_, now);
  if (now - seen_at_ < timeout) return;
  shared_->context->metrics().slow_client_evictions(Front::kGrpc)->Increment();
  BreakLocked();
}

template <typename Response>
void GenerationStream<Response>::DropOutboxLocked() {
  shared_->context->metrics()
      .buffered_bytes(Front::kGrpc)
      ->Add(-static_cast<double>(outbox_bytes_));
  outbox_bytes_ = counted_bytes_ = 0;
  outbox_.clear();
}

// ---- gRPC's threads ----

template <typename Response>
void GenerationStream<Response>::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
  seen_at_ = absl::InfiniteFuture();
  const int64_t bytes = SizeOf(outbox_.front().response);
  outbox_bytes_ -= bytes;
  if (outbox_.front().counts) counted_bytes_ -= bytes;
  shared_->context->metrics().buffered_bytes(Front::kGrpc)->Add(-static_cast<double>(bytes));
  outbox_.pop_front();
  if (!ok) broken_ = true;
  WriteNextLocked();
}

template <typename Response>
void GenerationStream<Response>::OnCancel() {
  const bool late = HasPassed(rpc_->deadline(), created_at_);
  bool had_output = false;
  bool was_running = false;
  {
    absl::MutexLock lock(&mu_);
    was_running = !ending_;
    had_output = has_written_;
    broken_ = true;
  }
  if (was_running && !late) {
    shared_->context->metrics().CountDisconnect(had_output ? DisconnectPhase::kStreaming
                                                           : DisconnectPhase::kBeforeFirstToken);
  }
  AbandonOnFront();
  EndWith(late ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "the call's deadline passed")
               : grpc::Status::CANCELLED);
}

template <typename Response>
void GenerationStream<Response>::OnDone() {
  shared_->writes.Remove(this);
  {
    absl::MutexLock lock(&mu_);
    done_ = true;
  }
  AbandonOnFront();  // holds this until then
  self_.reset();
}

template class GenerationStream<v1::GenerateResponse>;
template class GenerationStream<v1::ChatResponse>;

}  // namespace sluice::router
