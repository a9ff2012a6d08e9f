#include "services/worker_runtime/block_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

namespace sluice::worker {
namespace {

using Json = nlohmann::ordered_json;

// States in which the transfer thread may touch the blocks, so that a lease bounds them.
bool IsTransferring(const std::string& state) {
  return state == SequencePhaseName(SequencePhase::kPinned) ||
         state == SequencePhaseName(SequencePhase::kReserved) ||
         state == SequencePhaseName(SequencePhase::kQuarantined) || state == Engine::kLentState;
}

Json Describe(const BlockHolder& holder, const BlockReportContext& context, absl::Time now) {
  Json json = {{"request_id", holder.key.request.ToString()},
               {"attempt", holder.key.attempt.value},
               {"state", holder.state},
               {"blocks", holder.num_blocks},
               {"known_request", holder.times.has_value()},
               {"held_seconds", nullptr},
               {"deadline_in_seconds", nullptr},
               {"lease_seconds", nullptr},
               {"ending", false}};
  if (holder.times.has_value()) {
    json["held_seconds"] = absl::ToDoubleSeconds(now - holder.times->arrived);
    if (holder.times->deadline < absl::InfiniteFuture()) {
      json["deadline_in_seconds"] = absl::ToDoubleSeconds(holder.times->deadline - now);
    }
    json["ending"] = holder.times->ending;
  }
  if (IsTransferring(holder.state)) json["lease_seconds"] = absl::ToDoubleSeconds(context.lease);
  return json;
}

}  // namespace

BlockReport MakeBlockReport(const Engine& engine, const RequestHandler& handler, absl::Time now) {
  BlockReport report;
  report.taken = now;
  report.counts = engine.Load().blocks;
  for (Engine::Holder& holder : engine.Holders()) {
    if (holder.num_blocks == 0) continue;
    report.holders.push_back(
        {holder.key, std::move(holder.state), holder.num_blocks, std::nullopt});
  }
  report.num_holders = static_cast<int>(report.holders.size());
  const auto larger = [](const BlockHolder& a, const BlockHolder& b) {
    return std::tie(b.num_blocks, a.key) < std::tie(a.num_blocks, b.key);
  };
  const int num_reported = std::min(report.num_holders, kMaxReportedHolders);
  std::partial_sort(report.holders.begin(), report.holders.begin() + num_reported,
                    report.holders.end(), larger);
  report.holders.resize(static_cast<size_t>(num_reported));
  for (BlockHolder& holder : report.holders) holder.times = handler.TimesOf(holder.key);
  return report;
}

std::string BlockReportJson(const BlockReport& report, const BlockReportContext& context,
                            absl::Time now) {
  Json holders = Json::array();
  for (const BlockHolder& holder : report.holders) {
    holders.push_back(Describe(holder, context, now));
  }
  const BlockCounts& counts = report.counts;
  const Json json = {{"worker_id", context.worker_id},
                     {"role", context.role},
                     {"age_seconds", absl::ToDoubleSeconds(now - report.taken)},
                     {"blocks",
                      {{"total", counts.total},
                       {"free", counts.free},
                       {"cached", counts.cached},
                       {"active", counts.active},
                       {"receiving", counts.receiving},
                       {"sending", counts.sending},
                       {"quarantined", counts.quarantined}}},
                     {"num_holders", report.num_holders},
                     {"holders", std::move(holders)}};
  // A worker id may hold anything.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace sluice::worker
