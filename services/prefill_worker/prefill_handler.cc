#include "services/prefill_worker/prefill_handler.h"

#include <algorithm>

#include "common/block_hash.h"

namespace sluice::worker {
namespace {

constexpr char kStagePrefill[] = "prefill";
constexpr char kStageTransfer[] = "kv_transfer";

FirstToken ToFirstToken(const SampledToken& token) {
  FirstToken first;
  first.token = token.token;
  first.logprob = token.logprob;
  for (const TokenLogprob& top : token.top) first.top.emplace_back(top.token, top.logprob);
  return first;
}

}  // namespace

PrefillHandler::PrefillHandler(const HandlerContext& context)
    : HandlerBase(context), fetcher_(context) {}

std::unique_ptr<RequestHandler> MakePrefillHandler(const HandlerContext& context) {
  return std::make_unique<PrefillHandler>(context);
}

void PrefillHandler::OnPrefill(rpc::SessionId session, rpc::PrefillOrder order) {
  const SequenceKey key{order.sequence.request, order.sequence.attempt};
  PrefillRecord* duplicate = nullptr;
  if (!Admit(key, &duplicate)) return;
  if (draining_) {
    Refuse(session, key, absl::UnavailableError("the prefill worker is draining"), kStagePrefill);
    return;
  }
  if (order.fingerprint != context_.engine->fingerprint().digest) {
    Refuse(session, key,
           absl::FailedPreconditionError(absl::StrCat("decode worker ", order.decode_worker_id,
                                                      " has another model, layout or kernels")),
           kStagePrefill);
    return;
  }

  PrefillRecord record = MakeRecord(session, order.sequence);
  record.transfer = order.grant.transfer;
  record.cached_by_peer = order.grant.cached_tokens;
  record.num_tokens = static_cast<int>(order.sequence.tokens.size());

  SendSpec spec;
  spec.transfer = order.grant.transfer;
  spec.request = key.request;
  spec.attempt = key.attempt;
  spec.peer_address = std::move(order.kv_address);
  spec.peer_incarnation = order.grant.incarnation;
  spec.fingerprint = std::move(order.fingerprint);
  spec.begin_token = record.cached_by_peer;
  spec.end_token = record.num_tokens;
  spec.block_bytes = static_cast<uint64_t>(context_.engine->layout().block_bytes());
  spec.block_tokens = kBlockTokens;

  PrefixSource source;
  source.grant = spec.transfer;
  source.incarnation = spec.peer_incarnation;
  source.kv_address = spec.peer_address;
  source.cached_tokens = spec.begin_token;
  SequenceInput prompt = MakeInput(std::move(order.sequence));
  const bool fetching = fetcher_.Begin(source, &prompt);
  if (!fetching) {
    if (absl::Status added = context_.engine->AddPrefill(std::move(prompt)); !added.ok()) {
      Refuse(session, key, std::move(added), kStagePrefill);
      return;
    }
  }
  table_.Insert(std::move(record));
  // Binding early takes the round trip out of the first offer's way.
  context_.transfers->StartSend(std::move(spec));
}

void PrefillHandler::Compute(std::optional<SequenceInput> prompt) {
  if (!prompt) return;
  PrefillRecord* record = table_.Find(prompt->key);
  if (record == nullptr || record->ending) return;
  if (absl::Status added = context_.engine->AddPrefill(*std::move(prompt)); !added.ok()) {
    TearDownOnce(*record, Ending::Failed(std::move(added), kStagePrefill));
  }
}

void PrefillHandler::OnReserveAnswer(ReserveAnswer answer) {
  Compute(fetcher_.OnReserveAnswer(answer));
}

void PrefillHandler::OnTick(absl::Time now) {
  fetcher_.OnTick(now);
  HandlerBase::OnTick(now);
}

absl::Time PrefillHandler::NextDeadline() const {
  return std::min(fetcher_.NextDeadline(), HandlerBase::NextDeadline());
}

std::optional<RequestTimes> PrefillHandler::TimesOf(const SequenceKey& key) const {
  const std::optional<RequestTimes> times = HandlerBase::TimesOf(key);
  return times.has_value() ? times : fetcher_.TimesOf(key);
}

void PrefillHandler::OnStep(const StepResult& result, const StepInterval& interval) {
  fetcher_.OnComputed(result.num_prefill_tokens, interval.end - interval.begin);
  for (const SequenceKey& key : result.started) {
    if (PrefillRecord* record = table_.Find(key)) record->compute_began = interval.begin;
  }
  for (const ChunkComputed& chunk : result.chunks) {
    PrefillRecord* record = table_.Find(chunk.key);
    if (record != nullptr && !record->ending) OfferChunk(*record, chunk);
  }

  TokensByRouter tokens;
  for (const TokenProduced& produced : result.tokens) {
    PrefillRecord* record = table_.Find(produced.key);
    if (record == nullptr) continue;
    record->has_token = true;
    if (record->ending) continue;
    const absl::Time began = std::min(record->compute_began, interval.begin);
    rpc::OutputTokenEvent event{produced.key.request, produced.key.attempt, produced.index,
                                produced.token};
    event.stages = rpc::StageDurations{began - record->arrived, interval.end - began};
    event.cached_tokens = produced.cached_tokens;
    tokens[record->session].push_back(std::move(event));
    context_.metrics->QueueTime(began - record->arrived);
    context_.metrics->PrefixLookup(record->num_tokens, produced.cached_tokens);
    context_.transfers->FinishSend(record->transfer, ToFirstToken(produced.token));
  }
  SendTokens(tokens);

  for (const SequenceEnded& ended : result.ended) {
    PrefillRecord* record = table_.Find(ended.key);
    if (record == nullptr) continue;
    absl::Status why = ended.status;
    if (why.ok()) why = absl::InternalError("the engine gave no reason");
    TearDownOnce(*record, Ending::Failed(std::move(why), kStagePrefill));
  }
}

void PrefillHandler::OfferChunk(PrefillRecord& record, const ChunkComputed& chunk) {
  const int begin = std::max(chunk.begin, record.cached_by_peer);
  if (begin >= chunk.end) return;
  std::vector<absl::Span<const uint8_t>> blocks;
  const int first = (begin - chunk.begin) / kBlockTokens;
  for (size_t i = first; i < chunk.blocks.size(); ++i) {
    blocks.push_back(context_.engine->BlockBytes(chunk.blocks[i]));
  }
  record.offered = true;
  context_.transfers->Offer(record.transfer, begin, chunk.end, std::move(blocks));
}

void PrefillHandler::OnTransferEvent(const TransferEvent& event) {
  if (const auto* ended = std::get_if<SendEnded>(&event)) OnSendEnded(*ended);
  if (const auto* fetched = std::get_if<ReceiveEnded>(&event)) {
    Compute(fetcher_.OnReceiveEnded(*fetched));
  }
}

void PrefillHandler::OnSendEnded(const SendEnded& event) {
  PrefillRecord* record = table_.Find({event.request, event.attempt});
  if (record == nullptr || record->transfer != event.transfer) return;
  fetcher_.Cancel(record->key);
  LeaveEngine(*record);
  if (record->ending) {
    Finish(*record, Ending(*record->ending));
  } else if (event.status.ok()) {
    Finish(*record, {rpc::RequestEndReason::kHandedOver, {}, ""});
  } else {
    Finish(*record, Ending::Failed(event.status, kStageTransfer));
  }
}

void PrefillHandler::TearDown(PrefillRecord& record) {
  // Nothing was offered: no one reads the blocks, so stop computing now instead of after the
  // decode worker's answer.
  if (!record.offered || Planted(WorkerMutant::kUnpinBeforeSendEnded)) LeaveEngine(record);
  fetcher_.Cancel(record.key);
  const Ending& ending = *record.ending;
  context_.transfers->CancelSend(
      record.transfer, ending.status.ok() ? absl::CancelledError("cancelled") : ending.status);
}

void PrefillHandler::LeaveEngine(PrefillRecord& record) {
  if (std::exchange(record.left_engine, true)) return;
  if (record.has_token) {
    context_.engine->Release(record.key);
  } else {
    context_.engine->Cancel(record.key);
  }
}

std::string PrefillHandler::StageOf(const PrefillRecord& record) const {
  return record.has_token ? kStageTransfer : kStagePrefill;
}

}  // namespace sluice::worker
