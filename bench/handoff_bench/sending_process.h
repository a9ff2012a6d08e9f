// The process that plays the prefill worker: sends what the other one tells it to. A child, so that
// the bytes really change processes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace sluice::bench {

struct PairOptions {
  std::string tls;  // UCX_TLS of both processes
  uint64_t block_bytes = 0;
  int blocks_per_transfer = 0;
  int chunk_blocks = 0;           // offered at once
  absl::Duration chunk_duration;  // a chunk's computation, before it is offered
  int num_transfers_at_once = 0;  // each with memory of its own
};

// Sent as it is through the socket between the two.
struct SendOrder {
  TransferId transfer;
  RequestId request;
  int slot = 0;  // which memory
};

constexpr Incarnation kSender{1};
constexpr Incarnation kReceiver{2};
constexpr int kBlockTokens = 64;

class SendingProcess {
 public:
  // Call before this process uses UCX. The child ends when the object goes.
  static absl::StatusOr<std::unique_ptr<SendingProcess>> Start(const PairOptions& options);
  ~SendingProcess();
  SendingProcess(const SendingProcess&) = delete;
  SendingProcess& operator=(const SendingProcess&) = delete;

  // First thing to do: where to send.
  absl::Status Tell(const std::string& receiver_address);
  absl::Status Order(const SendOrder& order);

 private:
  SendingProcess(pid_t pid, int socket) : pid_(pid), socket_(socket) {}

  const pid_t pid_;
  const int socket_;
};

}  // namespace sluice::bench
