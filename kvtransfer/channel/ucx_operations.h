// Sends and receives that UCX has under way, each ended exactly once. Owned by the channel; its
// thread.
//
// UCX 1.13 does not end everything: over shared memory a send whose reader was killed or stopped
// while its queue was full stays pending for ever, even after a forced close of its endpoint.
// Therefore the channel may end sends itself. Such a send is an orphan: UCX may still read its
// memory, so the memory must stay mapped, but it may be reused, because the only reader is a
// process that we gave up, and its checksums refuse what it reads. A receive is different: UCX
// would write. It ends by UCX's word, or when UCX's worker has been destroyed.
#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvtransfer/channel/kv_channel.h"

namespace sluice {

class UcxOperations {
 public:
  struct Ended {
    OperationId id;
    PeerId peer;
    bool is_send = false;
    uint64_t payload_bytes = 0;
    absl::Status status;
  };
  using OnEnded = std::function<void(const Ended&)>;

  // `on_ended` is called from within UCX's progress, and from Send and Receive.
  explicit UcxOperations(OnEnded on_ended) : on_ended_(std::move(on_ended)) {}
  ~UcxOperations();  // after UCX's worker
  UcxOperations(const UcxOperations&) = delete;
  UcxOperations& operator=(const UcxOperations&) = delete;

  void Send(ucp_ep_h endpoint, OperationId id, PeerId peer, std::string header,
            const std::vector<absl::Span<const uint8_t>>& payload, uint64_t eager_max_bytes);
  // Sends the header if UCX can do it at once, without starting anything. UNAVAILABLE: not now.
  static absl::Status TrySend(ucp_ep_h endpoint, absl::string_view header);
  // `descriptor` is UCX's of a rendezvous payload.
  void Receive(ucp_worker_h worker, void* descriptor, OperationId id, PeerId peer,
               const std::vector<absl::Span<uint8_t>>& destination);

  // Ends the peer's sends that UCX has not ended.
  void OrphanSends(PeerId peer, const absl::Status& status);
  bool HasReceives(PeerId peer) const;
  // UCX's worker is gone, and with it all that could touch memory.
  void EndAll(const absl::Status& status);

  size_t num_pending() const { return num_pending_; }
  size_t num_orphans() const { return operations_.size() - num_pending_; }

 private:
  // UCX reads `header` and `iov` until it has ended the operation.
  struct Operation {
    UcxOperations* owner = nullptr;
    OperationId id;
    PeerId peer;
    bool is_send = false;
    bool ended = false;
    std::string header;
    std::vector<ucp_dt_iov_t> iov;
    uint64_t payload_bytes = 0;
  };

  static void OnSent(void* request, ucs_status_t status, void* operation);
  static void OnReceived(void* request, ucs_status_t status, size_t bytes, void* operation);

  Operation* New(OperationId id, PeerId peer, bool is_send);
  void Report(Operation* operation, absl::Status status);
  void Finish(Operation* operation, ucs_status_t status);

  const OnEnded on_ended_;
  absl::flat_hash_set<Operation*> operations_;
  size_t num_pending_ = 0;
};

}  // namespace sluice
