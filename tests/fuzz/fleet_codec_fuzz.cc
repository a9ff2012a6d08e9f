// A message of the fleet protocol as a worker reads it (RouterMessage) and as the router does
// (WorkerMessage): what is accepted is written and read back the same.
#include <string>

#include "common/check.h"
#include "services/rpc/fleet_codec.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::rpc {
namespace {

template <typename Proto>
void CheckRoundTrip(const Proto& proto) {
  const auto decoded = Decode(proto);
  if (!decoded.ok()) {
    SLUICE_CHECK(decoded.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  Proto again;
  Encode(*decoded, &again);
  const auto decoded_again = Decode(again);
  SLUICE_CHECK(decoded_again.ok());
  Proto third;
  Encode(*decoded_again, &third);
  // As text: maps have an order there, and a NaN compares equal.
  SLUICE_CHECK(third.DebugString() == again.DebugString());
}

void Fuzz(const std::string& bytes) {
  v1::RouterMessage to_worker;
  if (to_worker.ParseFromString(bytes)) {
    if (to_worker.has_reserve()) CheckRoundTrip(to_worker.reserve());
    if (to_worker.has_prefill()) CheckRoundTrip(to_worker.prefill());
    if (to_worker.has_run()) CheckRoundTrip(to_worker.run());
    if (to_worker.has_cancel()) CheckRoundTrip(to_worker.cancel());
  }
  v1::WorkerMessage to_router;
  if (to_router.ParseFromString(bytes)) {
    if (to_router.has_grant()) CheckRoundTrip(to_router.grant());
    if (to_router.has_busy()) CheckRoundTrip(to_router.busy());
    for (const v1::OutputToken& token : to_router.tokens().tokens()) CheckRoundTrip(token);
    if (to_router.has_ended()) CheckRoundTrip(to_router.ended());
    if (to_router.has_kv_ready()) CheckRoundTrip(to_router.kv_ready());
  }
}

}  // namespace
}  // namespace sluice::rpc

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::rpc::Fuzz(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
