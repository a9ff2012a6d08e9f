#include "kvtransfer/channel/ucx_operations.h"

#include <utility>

#include "kvtransfer/channel/ucx_context.h"

namespace sluice {
namespace {

// What UCX wants to know of a buffer. One piece goes as a plain buffer, because only that is moved
// by RDMA without a copy.
struct Buffer {
  Buffer(std::vector<ucp_dt_iov_t>* iov, ucp_request_param_t* param) {
    if (iov->size() == 1) {
      address = iov->front().buffer;
      count = iov->front().length;
    } else if (iov->size() > 1) {
      param->op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
      param->datatype = ucp_dt_make_iov();
      address = iov->data();
      count = iov->size();
    }
  }
  void* address = nullptr;
  size_t count = 0;
};

}  // namespace

UcxOperations::~UcxOperations() {
  for (Operation* operation : operations_) delete operation;
}

void UcxOperations::Send(ucp_ep_h endpoint, OperationId id, PeerId peer, std::string header,
                         const std::vector<absl::Span<const uint8_t>>& payload,
                         uint64_t eager_max_bytes) {
  Operation* operation = New(id, peer, /*is_send=*/true);
  operation->header = std::move(header);
  for (const absl::Span<const uint8_t>& span : payload) {
    if (span.empty()) continue;
    operation->iov.push_back({const_cast<uint8_t*>(span.data()), span.size()});
    operation->payload_bytes += span.size();
  }
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.cb.send = &UcxOperations::OnSent;
  param.user_data = operation;
  param.flags =
      operation->payload_bytes <= eager_max_bytes ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
  const Buffer buffer(&operation->iov, &param);
  ucs_status_ptr_t request =
      ucp_am_send_nbx(endpoint, kUcxActiveMessageId, operation->header.data(),
                      operation->header.size(), buffer.address, buffer.count, &param);
  // A pointer: OnSent is or was called.
  if (!UCS_PTR_IS_PTR(request)) Finish(operation, UCS_PTR_RAW_STATUS(request));
}

absl::Status UcxOperations::TrySend(ucp_ep_h endpoint, absl::string_view header) {
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FLAG_FORCE_IMM_CMPL;
  ucs_status_ptr_t request = ucp_am_send_nbx(endpoint, kUcxActiveMessageId, header.data(),
                                             header.size(), nullptr, 0, &param);
  const ucs_status_t status = UCS_PTR_STATUS(request);
  if (status == UCS_ERR_NO_RESOURCE) return absl::UnavailableError("not connected yet");
  return UcxStatus(status, "send");
}

void UcxOperations::Receive(ucp_worker_h worker, void* descriptor, OperationId id, PeerId peer,
                            const std::vector<absl::Span<uint8_t>>& destination) {
  Operation* operation = New(id, peer, /*is_send=*/false);
  for (const absl::Span<uint8_t>& span : destination) {
    if (span.empty()) continue;
    operation->iov.push_back({span.data(), span.size()});
    operation->payload_bytes += span.size();
  }
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = &UcxOperations::OnReceived;
  param.user_data = operation;
  const Buffer buffer(&operation->iov, &param);
  ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker, descriptor, buffer.address, buffer.count, &param);
  if (!UCS_PTR_IS_PTR(request)) Finish(operation, UCS_PTR_RAW_STATUS(request));
}

void UcxOperations::OrphanSends(PeerId peer, const absl::Status& status) {
  for (Operation* operation : operations_) {
    if (operation->peer == peer && operation->is_send) Report(operation, status);
  }
}

bool UcxOperations::HasReceives(PeerId peer) const {
  for (const Operation* operation : operations_) {
    if (operation->peer == peer && !operation->is_send) return true;
  }
  return false;
}

void UcxOperations::EndAll(const absl::Status& status) {
  for (Operation* operation : operations_) {
    Report(operation, status);
    delete operation;
  }
  operations_.clear();
}

UcxOperations::Operation* UcxOperations::New(OperationId id, PeerId peer, bool is_send) {
  auto* operation = new Operation;
  operation->owner = this;
  operation->id = id;
  operation->peer = peer;
  operation->is_send = is_send;
  operations_.insert(operation);
  ++num_pending_;
  return operation;
}

void UcxOperations::Report(Operation* operation, absl::Status status) {
  if (std::exchange(operation->ended, true)) return;
  --num_pending_;
  on_ended_({operation->id, operation->peer, operation->is_send, operation->payload_bytes,
             std::move(status)});
}

void UcxOperations::Finish(Operation* operation, ucs_status_t status) {
  Report(operation, UcxStatus(status, operation->is_send ? "send" : "receive"));
  operations_.erase(operation);
  delete operation;
}

void UcxOperations::OnSent(void* request, ucs_status_t status, void* user_data) {
  auto* operation = static_cast<Operation*>(user_data);
  operation->owner->Finish(operation, status);
  ucp_request_free(request);
}

void UcxOperations::OnReceived(void* request, ucs_status_t status, size_t, void* user_data) {
  auto* operation = static_cast<Operation*>(user_data);
  operation->owner->Finish(operation, status);
  ucp_request_free(request);
}

}  // namespace sluice
