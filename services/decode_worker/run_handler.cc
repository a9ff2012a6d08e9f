#include "services/decode_worker/run_handler.h"

#include <algorithm>

#include "services/decode_worker/token_stream.h"

namespace sluice::worker {

RunHandler::RunHandler(const HandlerContext& context) : HandlerBase(context) {}

std::unique_ptr<RequestHandler> MakeRunHandler(const HandlerContext& context) {
  return std::make_unique<RunHandler>(context);
}

void RunHandler::OnRun(rpc::SessionId session, rpc::SequenceAttempt sequence) {
  const SequenceKey key{sequence.request, sequence.attempt};
  RunRecord* duplicate = nullptr;
  if (!Admit(key, &duplicate)) return;
  if (draining_) {
    Refuse(session, key, absl::UnavailableError("the worker is draining"), "prefill");
    return;
  }
  RunRecord record = MakeRecord(session, sequence);
  record.num_tokens = static_cast<int>(sequence.tokens.size());
  if (absl::Status added = context_.engine->AddRun(MakeInput(std::move(sequence))); !added.ok()) {
    Refuse(session, key, std::move(added), "prefill");
    return;
  }
  table_.Insert(std::move(record));
}

void RunHandler::OnStep(const StepResult& result, const StepInterval& interval) {
  for (const SequenceKey& key : result.started) {
    RunRecord* record = table_.Find(key);
    // A sequence that had to give up its blocks starts again; its first start counts.
    if (record != nullptr) record->compute_began = std::min(record->compute_began, interval.begin);
  }
  TokensByRouter tokens;
  for (const TokenProduced& produced : result.tokens) {
    RunRecord* record = table_.Find(produced.key);
    if (record == nullptr) continue;
    rpc::OutputTokenEvent event{produced.key.request, produced.key.attempt, produced.index,
                                produced.token};
    if (!std::exchange(record->has_token, true)) {
      const absl::Time began = std::min(record->compute_began, interval.begin);
      event.stages = rpc::StageDurations{began - record->arrived, interval.end - began};
      event.cached_tokens = produced.cached_tokens;
      context_.metrics->QueueTime(began - record->arrived);
      context_.metrics->PrefixLookup(record->num_tokens, produced.cached_tokens);
    }
    tokens[record->session].push_back(std::move(event));
  }
  SendTokens(tokens);
  for (const SequenceEnded& ended : result.ended) {
    RunRecord* record = table_.Find(ended.key);
    if (record == nullptr) continue;
    // Never preempted: one that gives its blocks up is computed again here.
    Finish(*record, EndingOf(ended));
  }
}

void RunHandler::TearDown(RunRecord& record) {
  context_.engine->Cancel(record.key);
  Finish(record, Ending(*record.ending));
}

std::string RunHandler::StageOf(const RunRecord& record) const {
  return record.has_token ? "decode" : "prefill";
}

}  // namespace sluice::worker
