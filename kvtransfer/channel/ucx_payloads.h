// Payloads that were announced to a UCX channel and wait to be received or dropped. Owned by the
// channel; its thread.
#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "kvtransfer/channel/kv_channel.h"

namespace sluice {

class UcxPayloads {
 public:
  struct Payload {
    PeerId peer;
    void* descriptor = nullptr;  // UCX's; eager: the bytes themselves
    std::string copy;            // eager, when UCX lends nothing
    uint64_t bytes = 0;
    bool rendezvous = false;
  };

  // From UCX's message handler. *keep: UCX must leave the descriptor to us.
  PayloadId Announce(PeerId peer, void* data, size_t bytes, const ucp_am_recv_param_t* param,
                     bool* keep);
  // The caller must Release it or hand its descriptor to a receive.
  std::optional<Payload> Take(PayloadId id);
  void ReleaseAll(ucp_worker_h worker);
  // The worker is gone, and with it the descriptors.
  void ForgetAll() { payloads_.clear(); }

  // Rendezvous: also tells the sender that its send is over.
  static void Release(ucp_worker_h worker, const Payload& payload);
  static void CopyEager(const Payload& payload, absl::Span<const absl::Span<uint8_t>> destination);

 private:
  absl::flat_hash_map<PayloadId, Payload> payloads_;
  uint64_t last_payload_ = 0;
};

}  // namespace sluice
