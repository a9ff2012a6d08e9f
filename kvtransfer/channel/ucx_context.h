// One UCX context and worker, configured for the KV channel. RAII; the owner's thread.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvtransfer/channel/ucx_channel.h"

namespace sluice {

// Of all our messages.
inline constexpr unsigned kUcxActiveMessageId = 17;

absl::Status UcxStatus(ucs_status_t status, const std::string& what);

class UcxContext {
 public:
  static absl::StatusOr<std::unique_ptr<UcxContext>> Create(const UcxOptions& options);
  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;

  ucp_worker_h worker() const { return worker_; }
  int event_fd() const { return event_fd_; }
  size_t max_am_header_bytes() const { return max_am_header_bytes_; }
  absl::StatusOr<std::string> WorkerAddress() const;
  // For all active messages, whole and with data that may be kept.
  absl::Status SetMessageHandler(ucp_am_recv_callback_t handler, void* arg);

 private:
  UcxContext() = default;
  absl::Status Init(const UcxOptions& options);

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  size_t max_am_header_bytes_ = 0;
};

}  // namespace sluice
