#include "services/rpc/attach_client.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/monotonic_cond_var.h"
#include "common/random.h"
#include "services/rpc/fleet_codec.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/fleet.grpc.pb.h"

namespace sluice::rpc {
namespace {

// More tokens than this in one message would delay the first of them.
constexpr int kMaxTokensPerBatch = 1024;

SessionId NextSessionId() {
  static std::atomic<uint64_t> next{1};
  return SessionId(next.fetch_add(1, std::memory_order_relaxed));
}

// One stream's state, shared by gRPC's threads (reactions), the client's thread and senders.
// Ends by OnDone, gRPC's last touch; only then may it be destroyed.
class Stream final : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::RouterMessage> {
 public:
  Stream(SessionId session, const AttachOptions& options, AttachHandler* handler)
      : session_(session), options_(options), handler_(handler) {}

  void Open(v1::WorkerMessage registration) {
    channel_ = MakeChannel(options_.router_address);
    stub_ = v1::Fleet::NewStub(channel_);
    stub_->async()->Attach(&context_, this);
    // Writes are started outside of reactions; the hold keeps OnDone away until no more will be.
    AddHold();
    StartRead(&incoming_);
    {
      absl::MutexLock lock(&mu_);
      Enqueue(std::move(registration));
    }
    StartCall();
  }

  bool Push(v1::WorkerMessage message) {
    absl::MutexLock lock(&mu_);
    if (!welcomed_ || closed_ || closing_) return false;
    Enqueue(std::move(message));
    return !closed_;
  }

  void Cancel(absl::Status why) {
    absl::MutexLock lock(&mu_);
    CancelLocked(std::move(why));
  }

  // No more messages are taken; the stream half-closes when the queue is empty.
  void BeginClose() {
    absl::MutexLock lock(&mu_);
    if (closing_ || closed_) return;
    closing_ = true;
    if (!writing_) HalfClose();
  }

  void Nudge() {
    absl::MutexLock lock(&mu_);
    nudged_ = true;
    changed_.SignalAll();
  }

  struct State {
    bool done = false;
    bool welcomed = false;
    bool nudged = false;
    bool load_queued = false;
    uint64_t messages_heard = 0;
    absl::Status status;
  };
  // Sleeps until something changed or `timeout` passed.
  State Wait(absl::Duration timeout) {
    absl::MutexLock lock(&mu_);
    if (!done_ && !nudged_) changed_.Wait(&mu_, timeout);
    State state;
    state.done = done_;
    state.welcomed = welcomed_;
    state.nudged = std::exchange(nudged_, false);
    state.load_queued = load_queued_;
    state.messages_heard = messages_heard_;
    state.status = why_.ok() ? status_ : why_;
    return state;
  }

  SessionId session() const { return session_; }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) {
      absl::MutexLock lock(&mu_);
      CloseLocked();
      return;
    }
    bool pass_on = false;
    std::string router_id;
    {
      absl::MutexLock lock(&mu_);
      ++messages_heard_;
      if (incoming_.has_welcome()) {
        const v1::Welcome& welcome = incoming_.welcome();
        if (!welcome.error().empty()) {
          CancelLocked(absl::FailedPreconditionError(absl::StrCat("refused: ", welcome.error())));
        } else if (!welcomed_) {
          router_id = welcome.router_id();
        }
      } else {
        // Requests of a router that has not accepted us would be answered into the void.
        pass_on = welcomed_ && !incoming_.has_heartbeat() && !closed_;
      }
    }
    if (incoming_.has_welcome() && incoming_.welcome().error().empty()) {
      // Before welcomed_ shows, so that the handler hears OnWelcome first.
      handler_->OnWelcome(session_, router_id);
      absl::MutexLock lock(&mu_);
      welcomed_ = true;
      nudged_ = true;
      changed_.SignalAll();
    }
    if (pass_on) handler_->OnMessage(session_, incoming_);
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!ok) {
      CloseLocked();
      return;
    }
    StartNextWrite();
  }

  void OnDone(const grpc::Status& status) override {
    absl::MutexLock lock(&mu_);
    status_ = status.ok() ? absl::UnavailableError("the router closed the stream")
                          : FromGrpcStatus(status);
    done_ = true;
    changed_.SignalAll();
  }

  void Enqueue(v1::WorkerMessage message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (message.has_tokens() && !queue_.empty() && queue_.back().has_tokens() &&
        queue_.back().tokens().tokens_size() < kMaxTokensPerBatch) {
      queued_bytes_ += message.ByteSizeLong();
      queue_.back().mutable_tokens()->MergeFrom(message.tokens());
    } else {
      queued_bytes_ += message.ByteSizeLong();
      load_queued_ |= message.has_load();
      queue_.push_back(std::move(message));
    }
    if (queue_.size() > options_.max_queued_messages || queued_bytes_ > options_.max_queued_bytes) {
      CancelLocked(
          absl::ResourceExhaustedError(absl::StrCat("the router reads too slowly: ", queue_.size(),
                                                    " messages, ", queued_bytes_, " bytes wait")));
      return;
    }
    if (!writing_) StartNextWrite();
  }

  void StartNextWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (closed_) return;
    if (queue_.empty()) {
      queued_bytes_ = 0;
      if (closing_) HalfClose();
      return;
    }
    outgoing_ = std::move(queue_.front());
    queue_.pop_front();
    const size_t bytes = outgoing_.ByteSizeLong();
    queued_bytes_ -= std::min(bytes, queued_bytes_);
    if (outgoing_.has_load()) load_queued_ = false;
    writing_ = true;
    // What waits behind it goes into the same packet.
    grpc::WriteOptions options;
    if (!queue_.empty()) options.set_buffer_hint();
    StartWrite(&outgoing_, options);
  }

  void HalfClose() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (std::exchange(half_closed_, true)) return;
    StartWritesDone();
  }

  void CancelLocked(absl::Status why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (why_.ok()) why_ = std::move(why);
    context_.TryCancel();
    CloseLocked();
  }

  // After this no write is started, so OnDone may come as soon as what is pending has ended.
  void CloseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (std::exchange(closed_, true)) return;
    queue_.clear();
    queued_bytes_ = 0;
    RemoveHold();
  }

  // Constant after construction.
  const SessionId session_;
  const AttachOptions& options_;
  AttachHandler* const handler_;

  // Owned by gRPC between Start... and its reaction.
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Fleet::Stub> stub_;
  grpc::ClientContext context_;
  v1::RouterMessage incoming_;
  v1::WorkerMessage outgoing_;

  absl::Mutex mu_;
  MonotonicCondVar changed_;
  std::deque<v1::WorkerMessage> queue_ ABSL_GUARDED_BY(mu_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t messages_heard_ ABSL_GUARDED_BY(mu_) = 0;
  bool load_queued_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool welcomed_ ABSL_GUARDED_BY(mu_) = false;
  bool nudged_ ABSL_GUARDED_BY(mu_) = false;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status why_ ABSL_GUARDED_BY(mu_);  // our own reason for the end
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

class AttachClientImpl final : public AttachClient {
 public:
  AttachClientImpl(AttachOptions options, AttachHandler* handler)
      : options_(std::move(options)), handler_(handler), random_(RandomUint64()) {
    thread_ = std::thread([this] { Run(); });
  }

  ~AttachClientImpl() override { Stop(); }

  bool Send(SessionId session, v1::WorkerMessage message) override {
    absl::MutexLock lock(&mu_);
    return stream_ != nullptr && stream_->session() == session && stream_->Push(std::move(message));
  }

  void HeartbeatNow() override {
    absl::MutexLock lock(&mu_);
    if (stream_ != nullptr) stream_->Nudge();
  }

  void Break(SessionId session, absl::Status why) override {
    absl::MutexLock lock(&mu_);
    if (stream_ != nullptr && stream_->session() == session) stream_->Cancel(std::move(why));
  }

  bool attached() const override { return attached_.load(std::memory_order_relaxed); }

  void Stop() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
      stop_.SignalAll();
      if (stream_ != nullptr) stream_->Nudge();
    }
    absl::MutexLock lock(&join_mu_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run() {
    absl::Duration backoff = options_.backoff_min;
    while (!Stopping()) {
      if (RunSession()) backoff = options_.backoff_min;
      absl::MutexLock lock(&mu_);
      // Full jitter on the upper half: workers must not dial a restarted router all at once.
      const double jitter = std::uniform_real_distribution<double>(0.5, 1.0)(random_);
      stop_.Await(&mu_, absl::Condition(&stopping_), backoff * jitter);
      backoff = std::min(backoff * 2, options_.backoff_max);
    }
  }

  // One stream from dial to end. True when the router had welcomed us.
  bool RunSession() {
    const SessionId session = NextSessionId();
    Stream stream(session, options_, handler_);
    v1::WorkerMessage registration = handler_->OnConnect(session);
    {
      absl::MutexLock lock(&mu_);
      stream_ = &stream;
      if (stopping_) stream.Nudge();
    }
    stream.Open(std::move(registration));
    const Stream::State end = Supervise(&stream);
    attached_.store(false, std::memory_order_relaxed);
    {
      absl::MutexLock lock(&mu_);
      stream_ = nullptr;
    }
    LogEnd(end);
    handler_->OnDisconnect(session, end.status);
    return end.welcomed;
  }

  Stream::State Supervise(Stream* stream) {
    const absl::Duration interval = options_.heartbeat_interval;
    absl::Time last_wake = MonotonicNow();
    absl::Time next_heartbeat = last_wake;
    const absl::Time welcome_deadline = last_wake + options_.welcome_timeout;
    absl::Time flush_deadline = absl::InfiniteFuture();
    // Silence counts only while this thread really ran: a paused or starved process must not take
    // its own absence for the router's.
    absl::Duration silence;
    uint64_t heard = 0;
    while (true) {
      absl::Duration wait = interval;
      if (attached()) {
        wait = std::clamp(next_heartbeat - MonotonicNow(), absl::ZeroDuration(), interval);
      }
      const Stream::State state = stream->Wait(wait);
      if (state.done) return state;
      const absl::Time now = MonotonicNow();
      silence += std::min(now - last_wake, 2 * interval);
      last_wake = now;
      if (state.messages_heard != heard) {
        heard = state.messages_heard;
        silence = absl::ZeroDuration();
      }
      if (state.welcomed && !attached()) {
        attached_.store(true, std::memory_order_relaxed);
        SLUICE_LOG(Info) << "attached to router " << options_.router_address;
      }
      if (Stopping() && flush_deadline == absl::InfiniteFuture()) {
        flush_deadline = state.welcomed ? now + options_.flush_timeout : now;
        stream->BeginClose();
      }
      if (now >= flush_deadline) {
        stream->Cancel(absl::CancelledError("the worker is stopping"));
      } else if (!state.welcomed && now >= welcome_deadline) {
        stream->Cancel(absl::DeadlineExceededError(
            absl::StrCat("no welcome within ", absl::FormatDuration(options_.welcome_timeout))));
      } else if (state.welcomed && silence >= options_.router_timeout) {
        stream->Cancel(absl::UnavailableError(
            absl::StrCat("no sign of life for ", absl::FormatDuration(silence))));
      } else if (state.welcomed && (state.nudged || now >= next_heartbeat)) {
        next_heartbeat = now + interval;
        // One report waits at most: a second would only say the same more recently.
        if (!state.load_queued) stream->Push(handler_->OnHeartbeat(stream->session()));
      }
    }
  }

  void LogEnd(const Stream::State& end) {
    if (Stopping()) return;
    const std::string text(end.status.message());
    // A router that stays away is worth one line, not one every few seconds.
    if (!end.welcomed && text == last_failure_) return;
    last_failure_ = end.welcomed ? std::string() : text;
    SLUICE_LOG(Warning) << (end.welcomed ? "lost router " : "cannot attach to router ")
                        << options_.router_address << ": " << text << "; dialling again";
  }

  bool Stopping() const {
    absl::MutexLock lock(&mu_);
    return stopping_;
  }

  // Constant after construction.
  const AttachOptions options_;
  AttachHandler* const handler_;

  // Owned by thread_.
  std::mt19937_64 random_;
  std::string last_failure_;

  std::atomic<bool> attached_{false};

  // Order: mu_ before a stream's own lock.
  mutable absl::Mutex mu_;
  Stream* stream_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  MonotonicCondVar stop_;

  absl::Mutex join_mu_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<AttachClient> AttachClient::Start(AttachOptions options, AttachHandler* handler) {
  return std::make_unique<AttachClientImpl>(std::move(options), handler);
}

}  // namespace sluice::rpc
