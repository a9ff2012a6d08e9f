#include "services/router/core/membership.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace sluice::router {
namespace {

// The parts of two fingerprint texts that only one of them has. Texts are `key=value` parts
// separated by spaces, semicolons or newlines; any other text is compared part by part as well.
std::string DescribeDifference(const std::string& theirs, const std::string& ours) {
  const auto parts = [](const std::string& text) {
    return std::set<std::string>(absl::StrSplit(text, absl::ByAnyChar(" ;\n"), absl::SkipEmpty()));
  };
  const std::set<std::string> a = parts(theirs), b = parts(ours);
  std::vector<std::string> only_a, only_b;
  std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(only_a));
  std::set_difference(b.begin(), b.end(), a.begin(), a.end(), std::back_inserter(only_b));
  if (only_a.empty() && only_b.empty()) return "the fingerprints differ though their texts do not";
  return absl::StrCat("it has [", absl::StrJoin(only_a, " "), "], the cluster has [",
                      absl::StrJoin(only_b, " "), "]");
}

}  // namespace

const char* WorkerRoleName(WorkerRole role) {
  switch (role) {
    case WorkerRole::kPrefill:
      return "prefill";
    case WorkerRole::kDecode:
      return "decode";
    case WorkerRole::kBoth:
      return "both";
  }
  return "unknown";
}

const char* Membership::StateName(State state) {
  switch (state) {
    case State::kStarting:
      return "starting";
    case State::kReady:
      return "ready";
    case State::kDraining:
      return "draining";
    case State::kUnreachable:
      return "unreachable";
  }
  return "unknown";
}

absl::Status Membership::Check(const WorkerInfo& info) const {
  const std::string who = absl::StrCat("worker ", info.worker_id.substr(0, kMaxWorkerIdBytes));
  if (info.worker_id.empty()) return absl::InvalidArgumentError("worker_id is empty");
  if (info.worker_id.size() > kMaxWorkerIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("worker_id of ", info.worker_id.size(),
                                                   " bytes; at most ", kMaxWorkerIdBytes));
  }
  if (info.protocol_version != options_.protocol_version) {
    return absl::FailedPreconditionError(absl::StrCat(who, " speaks fleet protocol \"",
                                                      info.protocol_version, "\", this router \"",
                                                      options_.protocol_version, "\""));
  }
  if (!options_.model.empty() && info.model != options_.model) {
    return absl::FailedPreconditionError(absl::StrCat(who, " serves model \"", info.model,
                                                      "\", this router \"", options_.model, "\""));
  }
  if (info.fingerprint.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(who, " has no fingerprint"));
  }
  if (info.max_model_len <= 0 || info.max_num_seqs <= 0 || info.kv_block_tokens <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        who, ": max_model_len, max_num_seqs and kv_block_tokens must be positive, not ",
        info.max_model_len, ", ", info.max_num_seqs, ", ", info.kv_block_tokens));
  }
  if (info.role == WorkerRole::kDecode && info.kv_address.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(who, " has no kv_address to send KV to"));
  }
  int others = 0;
  for (const auto& [session, member] : members_) {
    if (member.info.worker_id == info.worker_id) continue;
    ++others;
    if (member.info.model != info.model) {
      return absl::FailedPreconditionError(absl::StrCat(who, " serves model \"", info.model,
                                                        "\", worker ", member.info.worker_id, " \"",
                                                        member.info.model, "\""));
    }
    if (member.info.fingerprint != info.fingerprint) {
      return absl::FailedPreconditionError(
          absl::StrCat(who, " is incompatible with worker ", member.info.worker_id, ": ",
                       DescribeDifference(info.fingerprint_text, member.info.fingerprint_text)));
    }
    if (member.info.kv_block_tokens != info.kv_block_tokens) {
      return absl::FailedPreconditionError(
          absl::StrCat(who, " has KV blocks of ", info.kv_block_tokens, " tokens, worker ",
                       member.info.worker_id, " of ", member.info.kv_block_tokens));
    }
  }
  if (others >= options_.max_workers) {
    return absl::ResourceExhaustedError(
        absl::StrCat(who, ": the router has its ", options_.max_workers, " workers already"));
  }
  return absl::OkStatus();
}

std::optional<SessionId> Membership::FindByWorkerId(const std::string& worker_id) const {
  for (const auto& [session, member] : members_) {
    if (member.info.worker_id == worker_id) return session;
  }
  return std::nullopt;
}

void Membership::Add(SessionId session, WorkerInfo info, absl::Time now) {
  Member member;
  member.session = session;
  member.info = std::move(info);
  member.last_heard = now;
  members_.insert_or_assign(session, std::move(member));
}

void Membership::Remove(SessionId session) {
  members_.erase(session);
  links_.Forget(session);
}

const Membership::Member* Membership::Find(SessionId session) const {
  const auto it = members_.find(session);
  return it == members_.end() ? nullptr : &it->second;
}

bool Membership::Heard(SessionId session, absl::Time now) {
  const auto it = members_.find(session);
  if (it == members_.end()) return false;
  it->second.last_heard = now;
  return true;
}

void Membership::SetLoad(SessionId session, WorkerLoad load) {
  Member& member = members_.at(session);
  load.kv_blocks_added = {};
  load.kv_blocks_removed = {};
  member.load = std::move(load);
  member.blocks_promised = 0;
}

void Membership::AddAssigned(SessionId session, int requests, int64_t prefill_tokens,
                             int64_t blocks) {
  const auto it = members_.find(session);
  if (it == members_.end()) return;  // left meanwhile
  it->second.assigned_requests += requests;
  it->second.assigned_prefill_tokens += prefill_tokens;
  it->second.blocks_promised = std::max<int64_t>(0, it->second.blocks_promised + blocks);
}

Membership::State Membership::StateOf(const Member& member, absl::Time now) const {
  if (now - member.last_heard >= options_.worker_timeout / 2) return State::kUnreachable;
  if (member.load.draining) return State::kDraining;
  return member.load.ready ? State::kReady : State::kStarting;
}

std::vector<SessionId> Membership::Silent(absl::Time now) const {
  std::vector<SessionId> silent;
  for (const auto& [session, member] : members_) {
    if (now - member.last_heard >= options_.worker_timeout) silent.push_back(session);
  }
  return silent;
}

absl::Time Membership::NextChange(absl::Time now) const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [session, member] : members_) {
    const absl::Time unreachable_at = member.last_heard + options_.worker_timeout / 2;
    next = std::min(
        next, unreachable_at > now ? unreachable_at : member.last_heard + options_.worker_timeout);
  }
  return next;
}

void Membership::ForgiveSilence(absl::Time now) {
  for (auto& [session, member] : members_) member.last_heard = now;
}

ClusterView Membership::View(absl::Time now) const {
  ClusterView view;
  view.workers.reserve(members_.size());
  for (const auto& [session, member] : members_) {
    if (StateOf(member, now) != State::kReady) continue;
    const WorkerLoad& load = member.load;
    WorkerView worker;
    worker.session = session;
    worker.worker_id = member.info.worker_id;
    worker.role = member.info.role;
    worker.fingerprint = member.info.fingerprint;
    worker.max_model_len = member.info.max_model_len;
    worker.max_num_seqs = member.info.max_num_seqs;
    worker.kv_block_tokens = member.info.kv_block_tokens;
    worker.requests =
        std::max(load.running_requests + load.waiting_requests, member.assigned_requests);
    worker.queued_prefill_tokens =
        std::max(load.queued_prefill_tokens, member.assigned_prefill_tokens);
    worker.available_blocks = load.blocks_free + load.blocks_cached - member.blocks_promised;
    worker.prefill_tokens_per_second = load.prefill_tokens_per_second;
    worker.is_late = now - member.last_heard >= options_.worker_timeout / 4;
    view.workers.push_back(std::move(worker));
  }
  std::sort(view.workers.begin(), view.workers.end(),
            [](const WorkerView& a, const WorkerView& b) { return a.worker_id < b.worker_id; });
  view.suspect_links = links_.Suspect(now);
  return view;
}

bool Membership::HasEachRole(absl::Time now) const {
  bool prefill = false, decode = false;  // any two of them are a pair, by invariant 2
  for (const auto& [session, member] : members_) {
    if (StateOf(member, now) != State::kReady) continue;
    prefill |= member.info.role != WorkerRole::kDecode;
    decode |= member.info.role != WorkerRole::kPrefill;
    if (prefill && decode) return true;
  }
  return false;
}

int Membership::MaxModelLen(absl::Time now) const {
  int smallest = 0;
  for (const auto& [session, member] : members_) {
    if (StateOf(member, now) != State::kReady) continue;
    smallest =
        smallest == 0 ? member.info.max_model_len : std::min(smallest, member.info.max_model_len);
  }
  return smallest;
}

}  // namespace sluice::router
