#include "tests/sim/sim_worker.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/block_hash.h"
#include "services/decode_worker/decode_handler.h"
#include "services/decode_worker/run_handler.h"
#include "services/prefill_worker/prefill_handler.h"

namespace sluice::testing {
namespace {

router::SessionId ToRouter(rpc::SessionId session) { return router::SessionId(session.value); }

router::AttemptEndReason ToRouter(rpc::RequestEndReason reason) {
  switch (reason) {
    case rpc::RequestEndReason::kStop:
      return router::AttemptEndReason::kStop;
    case rpc::RequestEndReason::kLength:
      return router::AttemptEndReason::kLength;
    case rpc::RequestEndReason::kCancelled:
      return router::AttemptEndReason::kCancelled;
    case rpc::RequestEndReason::kHandedOver:
      return router::AttemptEndReason::kHandedOver;
    case rpc::RequestEndReason::kFailed:
      break;
  }
  return router::AttemptEndReason::kFailed;
}

}  // namespace

SimWorker::SimWorker(SimWorkerOptions options, SimNetwork* network, worker::WorkerMetrics* metrics,
                     Uplink uplink)
    : options_(std::move(options)),
      network_(network),
      uplink_(std::move(uplink)),
      clock_(network),
      channel_(network->NewChannel(options_.name)),
      fake_(MakeFakeEngine(options_.scheduler, options_.num_blocks)),
      agent_(
          TransferAgent::Create(options_.transfers, options_.incarnation, channel_.get(), &clock_)),
      engine_free_at_(network->Now()) {
  worker::HandlerContext context;
  context.engine = fake_.engine.get();
  context.routers = this;
  context.transfers = this;
  context.metrics = metrics;
  context.clock = &clock_;
  context.self = options_.incarnation;
  context.lease = options_.transfers.lease;
  context.fetch_patience = options_.transfers.fetch_patience;
  switch (options_.role) {
    case router::WorkerRole::kPrefill:
      handler_ = worker::MakePrefillHandler(context);
      break;
    case router::WorkerRole::kDecode:
      handler_ = worker::MakeDecodeHandler(context);
      break;
    case router::WorkerRole::kBoth:
      handler_ = worker::MakeRunHandler(context);
      break;
  }
}

router::WorkerInfo SimWorker::Info() const {
  router::WorkerInfo info;
  info.worker_id = options_.name;
  info.incarnation = options_.incarnation;
  info.role = options_.role;
  info.model = "fake";
  info.fingerprint = fake_.engine->fingerprint().digest;
  info.fingerprint_text = fake_.engine->fingerprint().text;
  info.max_model_len = fake_.engine->max_model_len();
  info.max_num_seqs = options_.scheduler.max_num_seqs;
  info.num_kv_blocks = options_.num_blocks;
  info.kv_block_tokens = kBlockTokens;
  info.kv_address = channel_->LocalAddress();
  return info;
}

router::WorkerLoad SimWorker::LoadReport(router::SessionId session) {
  const EngineLoad engine = fake_.engine->Load();
  router::WorkerLoad load;
  load.ready = true;
  load.running_requests = engine.running;
  load.waiting_requests = engine.waiting;
  load.queued_prefill_tokens = engine.queued_prefill_tokens;
  load.blocks_total = engine.blocks.total;
  load.blocks_free = engine.blocks.free;
  load.blocks_cached = engine.blocks.cached;
  load.blocks_active = engine.blocks.active;
  load.blocks_receiving = engine.blocks.receiving;
  load.blocks_sending = engine.blocks.sending;
  load.blocks_quarantined = engine.blocks.quarantined;
  const PrefixCacheChanges changes = fake_.engine->TakePrefixCacheChanges();
  for (const BlockHash& hash : changes.removed) cached_.erase(hash);
  cached_.insert(changes.added.begin(), changes.added.end());
  std::set<BlockHash>& known = known_[session];
  std::set_difference(cached_.begin(), cached_.end(), known.begin(), known.end(),
                      std::back_inserter(load.kv_blocks_added));
  std::set_difference(known.begin(), known.end(), cached_.begin(), cached_.end(),
                      std::back_inserter(load.kv_blocks_removed));
  known = cached_;
  return load;
}

void SimWorker::Post(std::function<void(worker::RequestHandler*)> command) {
  to_engine_.push_back(std::move(command));
}

absl::Time SimWorker::WakeTime() const {
  if (paused) return absl::InfiniteFuture();
  const absl::Time now = network_->Now();
  absl::Time wake = clock_.ToReference(agent_->NextDeadline());
  if (channel_->has_events() || !to_transfer_.empty()) wake = now;
  absl::Time engine = clock_.ToReference(handler_->NextDeadline());
  if (EngineHasWork() || !to_engine_.empty()) engine = now;
  return std::min(wake, std::max(engine, engine_free_at_));
}

bool SimWorker::EngineHasWork() const { return fake_.engine->HasWork() && !stalled_; }

void SimWorker::Run() {
  const absl::Time local = clock_.Now();
  if (channel_->has_events() || !to_transfer_.empty() || agent_->NextDeadline() <= local) {
    RunTransferLoop();
  }
  bool engine_due = EngineHasWork() || !to_engine_.empty() || handler_->NextDeadline() <= local;
  if (engine_due && engine_free_at_ <= network_->Now()) RunEngineLoop();
}

void SimWorker::RunTransferLoop() {
  for (const auto& command : std::exchange(to_transfer_, {})) command();
  std::vector<TransferEvent> events;
  agent_->Poll(&events);
  for (TransferEvent& event : events) {
    Post([this, event = std::move(event)](worker::RequestHandler* h) {
      h->OnTransferEvent(event);
      if (const auto* received = std::get_if<Received>(&event)) {
        CheckContent({received->request, received->attempt});
      }
    });
  }
}

void SimWorker::RunEngineLoop() {
  const absl::Time now = clock_.Now();
  for (const auto& command : std::exchange(to_engine_, {})) {
    stalled_ = false;
    command(handler_.get());
  }
  if (handler_->NextDeadline() <= now) handler_->OnTick(now);
  if (!fake_.engine->HasWork()) return;
  const StepResult result = fake_.engine->Step();
  stalled_ = result.idle;
  for (const SequenceKey& key : result.started) CheckContent(key);
  engine_free_at_ = network_->Now() + options_.step_time;
  handler_->OnStep(result, {now, now + options_.step_time * clock_.rate()});
}

void SimWorker::CheckContent(const SequenceKey& key) {
  for (const Sequence* sequence : fake_.engine->scheduler().Sequences()) {
    if (sequence->key != key || sequence->phase == SequencePhase::kQuarantined) continue;
    for (int position = 0; position < sequence->num_computed; ++position) {
      if (HasFakeKv(*fake_.kv_store, sequence->block_table, position,
                    sequence->tokens[static_cast<size_t>(position)])) {
        continue;
      }
      foreign_bytes_ = absl::StrCat("foreign bytes at position ", position, " of request ",
                                    key.request.ToString(), "/", key.attempt.value);
      return;
    }
  }
}

std::string SimWorker::CheckPendingOperations() const {
  const auto destinations = channel_->PendingDestinations();
  const auto sources = channel_->PendingSources();
  if (destinations.empty() && sources.empty()) return "";
  std::set<const uint8_t*> reserved, lent;
  for (const Sequence* sequence : fake_.engine->scheduler().Sequences()) {
    const bool receives = sequence->phase == SequencePhase::kReserved ||
                          sequence->phase == SequencePhase::kQuarantined;
    if (!receives && sequence->kind != SequenceKind::kPrefill) continue;
    for (BlockId block : sequence->block_table) {
      (receives ? reserved : lent).insert(fake_.engine->BlockBytes(block).data());
    }
  }
  for (const auto& [id, pin] : fake_.engine->scheduler().pins()) {
    for (BlockId block : pin.blocks) lent.insert(fake_.engine->BlockBytes(block).data());
  }
  for (const auto& block : destinations) {
    if (!reserved.contains(block.data())) return "a block was freed under a pending receive";
  }
  for (const auto& block : sources) {
    if (!lent.contains(block.data())) return "a block was unpinned under a pending send";
  }
  return "";
}

bool SimWorker::Holds(const RequestId& request) const {
  const std::vector<Engine::Holder> holders = fake_.engine->Holders();
  return std::any_of(holders.begin(), holders.end(),
                     [&](const Engine::Holder& h) { return h.key.request == request; });
}

std::string SimWorker::CheckIntegrity() const {
  if (!foreign_bytes_.empty()) return foreign_bytes_;
  if (!fake_.engine->Load().blocks.Balanced()) return "block states do not sum to the pool";
  if (std::string pending = CheckPendingOperations(); !pending.empty()) return pending;
  return std::string(fake_.engine->CheckIntegrity().message());
}

std::string SimWorker::CheckIdle() const {
  const BlockCounts blocks = fake_.engine->Load().blocks;
  const TransferStats transfers = agent_->Stats();
  if (handler_->num_requests() == 0 && transfers.sends_in_flight == 0 &&
      transfers.receives_in_flight == 0 && blocks.free + blocks.cached == blocks.total &&
      fake_.engine->Holders().empty()) {
    return "";
  }
  return absl::StrCat(options_.name, " holds ", handler_->num_requests(), " requests, ",
                      transfers.sends_in_flight, " sends, ", transfers.receives_in_flight,
                      " receives, blocks: ", blocks.active, " active, ", blocks.receiving,
                      " receiving, ", blocks.sending, " sending, ", blocks.quarantined,
                      " quarantined");
}

void SimWorker::SendGrant(rpc::SessionId session, const rpc::GrantTerms& grant) {
  uplink_(ToRouter(session),
          router::Granted{ToRouter(session),
                          {grant.request, grant.attempt},
                          {grant.transfer, grant.incarnation, grant.cached_tokens, grant.lease}});
}

void SimWorker::SendBusy(rpc::SessionId session, const rpc::BusyAnswer& busy) {
  uplink_(ToRouter(session),
          router::AnsweredBusy{
              ToRouter(session), {busy.request, busy.attempt}, busy.reason, busy.retry_after});
}

void SimWorker::SendTokens(rpc::SessionId session,
                           const std::vector<rpc::OutputTokenEvent>& tokens) {
  router::TokensProduced event{ToRouter(session), {}};
  for (const rpc::OutputTokenEvent& token : tokens) {
    router::ProducedToken produced;
    produced.key = {token.request, token.attempt};
    produced.index = token.index;
    produced.token = token.token;
    produced.cached_tokens = token.cached_tokens;
    event.tokens.push_back(std::move(produced));
  }
  uplink_(ToRouter(session), std::move(event));
}

void SimWorker::SendKvReady(rpc::SessionId session, const rpc::KvReadyEvent& event) {
  uplink_(
      ToRouter(session),
      router::KvArrived{ToRouter(session), {event.request, event.attempt}, event.exposed_transfer});
}

void SimWorker::SendEnded(rpc::SessionId session, const rpc::RequestEndedEvent& event) {
  uplink_(ToRouter(session), router::AttemptEnded{ToRouter(session),
                                                  {event.request, event.attempt},
                                                  ToRouter(event.reason),
                                                  event.status,
                                                  event.stage});
}

void SimWorker::SendPreempted(rpc::SessionId session, const SequenceKey& key) {
  uplink_(ToRouter(session),
          router::AttemptPreempted{ToRouter(session), {key.request, key.attempt}});
}

void SimWorker::StartSend(SendSpec spec) {
  to_transfer_.push_back([this, spec = std::move(spec)] {
    absl::Status started = agent_->StartSend(spec);
    if (started.ok()) return;
    sluice::SendEnded ended{spec.transfer, spec.request, spec.attempt, started};
    Post([ended](worker::RequestHandler* h) { h->OnTransferEvent(ended); });
  });
}

void SimWorker::Offer(TransferId transfer, int begin_token, int end_token,
                      std::vector<absl::Span<const uint8_t>> blocks) {
  to_transfer_.push_back([this, transfer, begin_token, end_token, blocks = std::move(blocks)] {
    absl::Status offered = agent_->Offer(transfer, begin_token, end_token, blocks);
    if (!offered.ok() && !absl::IsNotFound(offered)) agent_->CancelSend(transfer, offered);
  });
}

void SimWorker::FinishSend(TransferId transfer, FirstToken first) {
  to_transfer_.push_back([this, transfer, first = std::move(first)] {
    absl::Status finished = agent_->FinishSend(transfer, first);
    if (!finished.ok() && !absl::IsNotFound(finished)) agent_->CancelSend(transfer, finished);
  });
}

void SimWorker::CancelSend(TransferId transfer, absl::Status reason) {
  to_transfer_.push_back(
      [this, transfer, reason = std::move(reason)] { agent_->CancelSend(transfer, reason); });
}

void SimWorker::Fetch(FetchSpec spec) {
  to_transfer_.push_back([this, spec = std::move(spec)] {
    worker::ReserveAnswer answer{spec.into.request, spec.into.attempt, agent_->Fetch(spec)};
    Post([answer](worker::RequestHandler* h) { h->OnReserveAnswer(answer); });
  });
}
void SimWorker::Reserve(ReceiveSpec spec) {
  to_transfer_.push_back([this, spec = std::move(spec)] {
    worker::ReserveAnswer answer{spec.request, spec.attempt, agent_->Reserve(spec)};
    Post([answer](worker::RequestHandler* h) { h->OnReserveAnswer(answer); });
  });
}

void SimWorker::CancelReceive(TransferId transfer, absl::Status reason) {
  to_transfer_.push_back(
      [this, transfer, reason = std::move(reason)] { agent_->CancelReceive(transfer, reason); });
}

}  // namespace sluice::testing
