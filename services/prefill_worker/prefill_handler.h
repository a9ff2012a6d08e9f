// Prefill role: computes a prompt in chunks, offers each chunk's blocks to the decode worker while
// the next is computed, samples the first token, and lets go of the blocks when the decode worker
// has them. Engine thread only.
//
// clang-format off
// Life of an attempt (engine sequence | send):
//   Prefill -> (fetching its beginning ->) computing | open
//           -> first token | finishing -> SendEnded -> handed over
//   Cancel, deadline, lost router, engine failure
//           -> | cancelling -> SendEnded -> ended
// clang-format on
// Invariant: blocks that were offered stay pinned in the engine until SendEnded, whatever happens.
#pragma once

#include <memory>

#include "services/prefill_worker/prefix_fetcher.h"
#include "services/worker_runtime/handler_base.h"

namespace sluice::worker {

struct PrefillRecord : RequestRecord {
  TransferId transfer;
  int cached_by_peer = 0;  // tokens the decode worker has; never offered
  int num_tokens = 0;
  absl::Time compute_began = absl::InfiniteFuture();
  bool offered = false;      // the transfer thread may be reading our blocks
  bool has_token = false;    // sampled; the sequence is pinned, no longer computing
  bool left_engine = false;  // released or cancelled there
};

class PrefillHandler final : public HandlerBase<PrefillRecord> {
 public:
  explicit PrefillHandler(const HandlerContext& context);

  void OnPrefill(rpc::SessionId session, rpc::PrefillOrder order) override;
  void OnReserveAnswer(ReserveAnswer answer) override;
  void OnTransferEvent(const TransferEvent& event) override;
  void OnStep(const StepResult& result, const StepInterval& interval) override;
  void OnTick(absl::Time now) override;
  absl::Time NextDeadline() const override;
  std::optional<RequestTimes> TimesOf(const SequenceKey& key) const override;

 protected:
  void TearDown(PrefillRecord& record) override;
  std::string StageOf(const PrefillRecord& record) const override;

 private:
  // The prompt's fetch is over; its request may be, too.
  void Compute(std::optional<SequenceInput> prompt);
  void OfferChunk(PrefillRecord& record, const ChunkComputed& chunk);
  void OnSendEnded(const SendEnded& event);
  // Frees the sequence's blocks. REQUIRES: the transfer no longer reads them.
  void LeaveEngine(PrefillRecord& record);

  PrefixFetcher fetcher_;
};

std::unique_ptr<RequestHandler> MakePrefillHandler(const HandlerContext& context);

}  // namespace sluice::worker
