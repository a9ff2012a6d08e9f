#include "kvtransfer/channel/ucx_payloads.h"

#include <cstring>
#include <utility>

namespace sluice {

PayloadId UcxPayloads::Announce(PeerId peer, void* data, size_t bytes,
                                const ucp_am_recv_param_t* param, bool* keep) {
  Payload payload;
  payload.peer = peer;
  payload.bytes = bytes;
  payload.rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  *keep = payload.rendezvous || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_DATA) != 0;
  if (*keep) {
    payload.descriptor = data;
  } else {
    payload.copy.assign(static_cast<const char*>(data), bytes);
  }
  const PayloadId id(++last_payload_);
  payloads_.emplace(id, std::move(payload));
  return id;
}

std::optional<UcxPayloads::Payload> UcxPayloads::Take(PayloadId id) {
  auto it = payloads_.find(id);
  if (it == payloads_.end()) return std::nullopt;
  Payload payload = std::move(it->second);
  payloads_.erase(it);
  return payload;
}

void UcxPayloads::ReleaseAll(ucp_worker_h worker) {
  for (const auto& [id, payload] : payloads_) Release(worker, payload);
  payloads_.clear();
}

void UcxPayloads::Release(ucp_worker_h worker, const Payload& payload) {
  if (payload.descriptor != nullptr) ucp_am_data_release(worker, payload.descriptor);
}

void UcxPayloads::CopyEager(const Payload& payload,
                            absl::Span<const absl::Span<uint8_t>> destination) {
  const char* from = payload.descriptor != nullptr ? static_cast<const char*>(payload.descriptor)
                                                   : payload.copy.data();
  for (const absl::Span<uint8_t>& span : destination) {
    if (!span.empty()) std::memcpy(span.data(), from, span.size());
    from += span.size();
  }
}

}  // namespace sluice
