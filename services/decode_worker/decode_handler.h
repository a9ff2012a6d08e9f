// Decode role: grants room for a request's KV, takes it in, and generates. Engine thread only.
//
// clang-format off
// Life of an attempt:
//   Reserve (-> held while an older attempt lets go)
//           -> reserving (the transfer thread mints the capability) -> granted
//           -> Received -> active -> ended
//   Cancel, deadline, lost router before Received
//           -> aborting until ReceiveEnded, then freed
// clang-format on
// Invariant: a reservation's blocks go back to the engine only after ReceiveEnded (or when no
// transfer was ever opened), because until then the network may write to them.
#pragma once

#include <memory>

#include "services/decode_worker/held_reserves.h"
#include "services/decode_worker/prefix_lender.h"
#include "services/worker_runtime/handler_base.h"

namespace sluice::worker {

struct DecodeRecord : RequestRecord {
  enum class State {
    kReserving,  // the engine has reserved; the transfer is being opened
    kGranted,    // the router knows; KV may be arriving
    kActive,     // KV complete; the engine generates
  };
  State state = State::kReserving;
  TransferId transfer;
  std::string kv_address;
  int cached_tokens = 0;
  bool let_go = false;  // given up: what was verified is cached, receives may be pending
  absl::Time activated_at;
  bool has_token = false;
};

class DecodeHandler final : public HandlerBase<DecodeRecord> {
 public:
  explicit DecodeHandler(const HandlerContext& context);

  void OnReserve(rpc::SessionId session, rpc::SequenceAttempt sequence) override;
  void OnReserveAnswer(ReserveAnswer answer) override;
  void OnTransferEvent(const TransferEvent& event) override;
  void OnStep(const StepResult& result, const StepInterval& interval) override;
  void OnCancel(rpc::SessionId session, const rpc::CancelOrder& order) override;
  void OnSessionLost(rpc::SessionId session) override;
  void OnTick(absl::Time now) override;
  absl::Time NextDeadline() const override;
  std::optional<RequestTimes> TimesOf(const SequenceKey& key) const override;

 protected:
  void TearDown(DecodeRecord& record) override;
  std::string StageOf(const DecodeRecord& record) const override;

 private:
  // Takes blocks and opens the transfer, or answers why not.
  void Reserve(rpc::SessionId session, rpc::SequenceAttempt sequence);
  // The older attempt has let go, or the patience with it is over.
  void ResumeHeld(const RequestId& request);
  // An older attempt is on its way out, and what it has verified is not cached yet.
  bool MayBringPrefix(const RequestId& request) const;
  void SendGrant(const DecodeRecord& record);
  void SendBusy(rpc::SessionId session, const SequenceKey& key, const absl::Status& why);
  void OnReceived(const Received& event);
  void OnReceiveAborted(const ReceiveAborted& event);
  void OnReceiveEnded(const ReceiveEnded& event);

  HeldReserves held_;
  PrefixLender lender_;
};

std::unique_ptr<RequestHandler> MakeDecodeHandler(const HandlerContext& context);

}  // namespace sluice::worker
