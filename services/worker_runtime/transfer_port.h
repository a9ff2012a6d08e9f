// What a role asks of the transfer thread. Implemented by TransferLoop; called on the engine
// thread; never blocks. Answers and results come back as events (RequestHandler::OnReserveAnswer,
// OnTransferEvent), in order; a command that cannot be carried out ends its transfer with an error.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "kvtransfer/agent/transfer_agent.h"

namespace sluice::worker {

// Answers TransferPort::Reserve and Fetch.
struct ReserveAnswer {
  RequestId request;
  Attempt attempt;
  absl::StatusOr<TransferId> transfer;
  std::string kv_address;  // where to send to
};

class TransferPort {
 public:
  virtual ~TransferPort() = default;
  virtual void StartSend(SendSpec spec) = 0;
  virtual void Offer(TransferId transfer, int begin_token, int end_token,
                     std::vector<absl::Span<const uint8_t>> blocks) = 0;
  virtual void FinishSend(TransferId transfer, FirstToken first) = 0;
  virtual void CancelSend(TransferId transfer, absl::Status reason) = 0;
  virtual void Reserve(ReceiveSpec spec) = 0;
  virtual void Fetch(FetchSpec spec) = 0;
  // Ends a reservation or a fetch.
  virtual void CancelReceive(TransferId transfer, absl::Status reason) = 0;
};

}  // namespace sluice::worker
