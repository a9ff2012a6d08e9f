// One server-streaming call of sluice.v1.Generation. The text work runs in turns, on the server's
// front thread or with whoever brings a token (CallExecutor); gRPC's reactions only take the next
// message out of a bounded buffer. Heavy header, for the .cc files of this folder.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "services/router/api/activity_count.h"
#include "services/router/api/api_context.h"
#include "services/router/api/generation_call.h"
#include "services/router/api/task_pool.h"
#include "services/router/grpc/grpc_request.h"
#include "services/router/grpc/grpc_server.h"
#include "services/router/grpc/write_watch.h"

namespace sluice::router {

// What calls share with their server, which outlives them.
struct GrpcServerShared {
  GrpcOptions options;
  ApiContext* context = nullptr;
  std::unique_ptr<TaskPool> front;  // one thread
  ActivityCount streams;
  ActivityCount prepares;  // tasks of ours on the prepare pool
  WriteWatch writes;
  std::atomic<bool> draining{false};
};

// Response is v1::GenerateResponse or v1::ChatResponse.
template <typename Response>
class GenerationStream : public grpc::ServerWriteReactor<Response>,
                         public ResponseWriter,
                         public CallExecutor,
                         public WatchedStream,
                         public std::enable_shared_from_this<GenerationStream<Response>> {
 public:
  using PlanFn = std::function<absl::StatusOr<GenerationPlan>()>;

  GenerationStream(GrpcServerShared* shared, grpc::CallbackServerContext* rpc, const char* method);
  ~GenerationStream() override;

  // `plan` checks and tokenizes a request of `input_bytes`. Any thread; once.
  void Start(int64_t input_bytes, PlanFn plan);

 private:
  // gRPC's threads.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // On the prepare pool.
  void Prepare(const PlanFn& plan);

  // In turns.
  void Submit(absl::StatusOr<GenerationPlan> plan);
  void OnDelta(const ChoiceDelta& delta) override;
  void OnComplete(const RequestSummary& summary) override;
  void OnError(const ApiError& error) override;
  void Abandon();

  // WatchedStream
  void EndIfStalled(absl::Time now, absl::Duration timeout) override;

  // CallExecutor
  void Post(std::weak_ptr<GenerationCall> call) override;
  bool TryRun(GenerationCall* call) override;

  // A turn on the front thread. False, and no turn, if its queue is full: it holds what
  // max_streams accepted streams can have on their way, so it should not be.
  [[nodiscard]] bool RunOnFront(std::function<void()> task);
  void AbandonOnFront();
  // Any thread.
  void Refuse(ErrorKind kind, absl::string_view message);
  // A message that `opens` a choice may carry the client's own prompt back; up to 16 times
  // max_stream_buffer_bytes of that do not count against the client.
  void Enqueue(Response response, bool opens);
  // Ends the call with `status` once everything queued was written.
  void EndWith(const grpc::Status& status);
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Resets the stream. REQUIRES: !done_.
  void BreakLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropOutboxLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  GrpcServerShared* const shared_;
  grpc::CallbackServerContext* const rpc_;  // valid until OnDone
  const char* const method_;
  const std::chrono::system_clock::time_point created_at_;
  bool accepted_ = false;  // constant after Start

  absl::Mutex turn_mu_;  // before mu_

  // In turns only.
  std::shared_ptr<GenerationCall> call_;
  bool abandoned_ = false;

  // Keeps this alive until OnDone.
  std::shared_ptr<GenerationStream> self_;

  absl::Mutex mu_;
  struct Waiting {
    Response response;
    bool counts;  // against max_stream_buffer_bytes
  };
  std::deque<Waiting> outbox_ ABSL_GUARDED_BY(mu_);  // the first is being written, if writing_
  int64_t outbox_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t counted_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of those
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool has_written_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;  // Finish was called: nothing more may be started
  bool broken_ ABSL_GUARDED_BY(mu_) = false;    // cancelled, evicted or a failed write
  bool done_ ABSL_GUARDED_BY(mu_) = false;      // the context may be gone
  grpc::Status final_status_ ABSL_GUARDED_BY(mu_);
  // When a check first saw the write, or the end, that gRPC is at; none has seen it: infinite.
  absl::Time seen_at_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

}  // namespace sluice::router
