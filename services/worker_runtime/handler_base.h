// What the roles have in common: cancelling, losing a router, deadlines, draining, refusing what
// another role should have got. A role adds its record and TearDown. Engine thread only.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "services/worker_runtime/mutants.h"
#include "services/worker_runtime/request_handler.h"
#include "services/worker_runtime/request_table.h"
#include "services/worker_runtime/worker_metrics.h"

namespace sluice::worker {

// How an attempt ends, as the router will hear it.
struct Ending {
  rpc::RequestEndReason reason = rpc::RequestEndReason::kFailed;
  absl::Status status;
  std::string stage;

  static Ending Cancelled() { return {rpc::RequestEndReason::kCancelled, {}, ""}; }
  static Ending Failed(absl::Status status, std::string stage) {
    return {rpc::RequestEndReason::kFailed, std::move(status), std::move(stage)};
  }
};

// Every role's record starts with these.
struct RequestRecord {
  SequenceKey key;
  rpc::SessionId session;
  absl::Time arrived;
  absl::Time deadline = absl::InfiniteFuture();
  // Set once the attempt is being torn down; the first reason wins.
  std::optional<Ending> ending;
};

template <typename Record>
class HandlerBase : public RequestHandler {
 public:
  explicit HandlerBase(const HandlerContext& context) : context_(context) {}

  void OnReserve(rpc::SessionId session, rpc::SequenceAttempt sequence) override {
    RefuseRole(session, {sequence.request, sequence.attempt}, "Reserve", "decode");
  }
  void OnPrefill(rpc::SessionId session, rpc::PrefillOrder order) override {
    RefuseRole(session, {order.sequence.request, order.sequence.attempt}, "Prefill", "prefill");
  }
  void OnRun(rpc::SessionId session, rpc::SequenceAttempt sequence) override {
    RefuseRole(session, {sequence.request, sequence.attempt}, "Run", "prefill");
  }
  void OnReserveAnswer(ReserveAnswer) override {}
  void OnTransferEvent(const TransferEvent&) override {}

  void OnCancel(rpc::SessionId session, const rpc::CancelOrder& order) override {
    const SequenceKey key{order.request, order.attempt};
    Record* record = table_.Find(key);
    if (record == nullptr) {
      // Ended already, or never seen. Either way nothing of it is here, which is what a canceller
      // needs to hear; what crosses this message is stale from now on.
      context_.metrics->Ignored(IgnoredReason::kUnknown);
      table_.Remember(key);
      TellRouter(session, key, Ending::Cancelled());
      return;
    }
    if (record->session != session) {
      context_.metrics->Ignored(IgnoredReason::kOtherRouter);
      return;
    }
    TearDownOnce(*record, Ending::Cancelled());
  }

  void OnSessionLost(rpc::SessionId session) override {
    if (Planted(WorkerMutant::kIgnoreLostRouter)) return;
    for (const SequenceKey& key :
         table_.KeysWhere([&](const Record& r) { return r.session == session; })) {
      if (Record* record = table_.Find(key)) TearDownOnce(*record, Ending::Cancelled());
    }
  }

  void OnTick(absl::Time now) override {
    for (const SequenceKey& key : table_.Expired(now)) {
      Record* record = table_.Find(key);
      TearDownOnce(*record, Ending::Failed(absl::DeadlineExceededError("the request's time is up"),
                                           StageOf(*record)));
    }
  }

  absl::Time NextDeadline() const override { return table_.NextDeadline(); }

  void BeginDrain() override { draining_ = true; }

  void AbortAll(const absl::Status& why) override {
    draining_ = true;
    for (const SequenceKey& key : table_.KeysWhere([](const Record&) { return true; })) {
      Record& record = *table_.Find(key);
      Report(record.session, key, Ending::Failed(why, StageOf(record)));
      table_.Erase(record);
    }
  }

  int num_requests() const override { return table_.size(); }

  std::optional<RequestTimes> TimesOf(const SequenceKey& key) const override {
    const Record* record = table_.Find(key);
    if (record == nullptr) return std::nullopt;
    return RequestTimes{record->arrived, record->deadline, record->ending.has_value()};
  }

 protected:
  // Frees everything the attempt holds; Finish follows, now or when the transfer has let go of the
  // blocks. `record.ending` is set. Called once per record.
  virtual void TearDown(Record& record) = 0;
  // "prefill", "kv_transfer" or "decode": where the attempt is now.
  virtual std::string StageOf(const Record& record) const = 0;

  void TearDownOnce(Record& record, Ending ending) {
    table_.ClearDeadline(record);
    if (record.ending) return;
    record.ending = std::move(ending);
    TearDown(record);
  }

  // True when `key` is news; older attempts of its request are then on their way out. Otherwise it
  // has been counted as stale, or is a duplicate of a live attempt (*duplicate is set).
  bool Admit(const SequenceKey& key, Record** duplicate) {
    *duplicate = nullptr;
    switch (table_.Classify(key)) {
      case Arrival::kStale:
        context_.metrics->Ignored(IgnoredReason::kStaleAttempt);
        return false;
      case Arrival::kDuplicate:
        context_.metrics->Ignored(IgnoredReason::kDuplicate);
        *duplicate = table_.Find(key);
        return false;
      case Arrival::kNew:
        break;
    }
    for (const SequenceKey& older :
         table_.KeysWhere([&](const Record& r) { return r.key.request == key.request; })) {
      if (Record* record = table_.Find(older)) TearDownOnce(*record, Ending::Cancelled());
    }
    return true;
  }

  // Fills the common fields of a new record.
  Record MakeRecord(rpc::SessionId session, const rpc::SequenceAttempt& sequence) const {
    Record record;
    record.key = {sequence.request, sequence.attempt};
    record.session = session;
    record.arrived = context_.clock->Now();
    if (sequence.time_left) record.deadline = record.arrived + *sequence.time_left;
    return record;
  }

  static SequenceInput MakeInput(rpc::SequenceAttempt sequence) {
    SequenceInput input;
    input.key = {sequence.request, sequence.attempt};
    input.tokens = std::move(sequence.tokens);
    input.num_output_tokens = sequence.num_output_tokens;
    input.sampling = std::move(sequence.sampling);
    input.tenant_salt = std::move(sequence.tenant_salt);
    return input;
  }

  // Refuses an attempt that never got a record.
  void Refuse(rpc::SessionId session, const SequenceKey& key, absl::Status status,
              std::string stage) {
    table_.Remember(key);
    Report(session, key, Ending::Failed(std::move(status), std::move(stage)));
  }

  // Tells the router and forgets the record.
  void Finish(Record& record, const Ending& ending) {
    Report(record.session, record.key, ending);
    table_.Erase(record);
  }

  // Counts an attempt's end and tells the router. Once an attempt.
  void Report(rpc::SessionId session, const SequenceKey& key, const Ending& ending) {
    context_.metrics->RequestEnded(ending.reason);
    if (ending.reason == rpc::RequestEndReason::kFailed) {
      SLUICE_LOG(Info) << "request " << key.request << "/" << key.attempt << " failed in "
                       << ending.stage << ": " << ending.status.message();
    }
    TellRouter(session, key, ending);
  }

  // Hands a step's tokens over, one message a router.
  using TokensByRouter = absl::btree_map<rpc::SessionId, std::vector<rpc::OutputTokenEvent>>;
  void SendTokens(const TokensByRouter& tokens) {
    for (const auto& [session, events] : tokens) context_.routers->SendTokens(session, events);
  }

  const HandlerContext context_;
  RequestTable<Record> table_;
  bool draining_ = false;

 private:
  void TellRouter(rpc::SessionId session, const SequenceKey& key, const Ending& ending) {
    context_.routers->SendEnded(
        session, {key.request, key.attempt, ending.reason, ending.status, ending.stage});
  }

  void RefuseRole(rpc::SessionId session, const SequenceKey& key, const char* what,
                  const char* stage) {
    context_.metrics->Ignored(IgnoredReason::kWrongRole);
    Refuse(session, key,
           absl::FailedPreconditionError(absl::StrCat("this worker's role has no ", what)), stage);
  }
};

}  // namespace sluice::worker
