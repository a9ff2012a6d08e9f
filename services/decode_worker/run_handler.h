// Role both: prompt and answer on this worker, no transfer. Engine thread only.
#pragma once

#include <memory>

#include "services/worker_runtime/handler_base.h"

namespace sluice::worker {

struct RunRecord : RequestRecord {
  int num_tokens = 0;
  absl::Time compute_began = absl::InfiniteFuture();
  bool has_token = false;
};

class RunHandler final : public HandlerBase<RunRecord> {
 public:
  explicit RunHandler(const HandlerContext& context);

  void OnRun(rpc::SessionId session, rpc::SequenceAttempt sequence) override;
  void OnStep(const StepResult& result, const StepInterval& interval) override;

 protected:
  void TearDown(RunRecord& record) override;
  std::string StageOf(const RunRecord& record) const override;
};

std::unique_ptr<RequestHandler> MakeRunHandler(const HandlerContext& context);

}  // namespace sluice::worker
