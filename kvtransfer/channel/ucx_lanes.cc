#include "kvtransfer/channel/ucx_lanes.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace sluice {
namespace {

int SlownessOf(absl::string_view transport) {
  if (transport == "self") return 1;
  for (absl::string_view shm : {"posix", "sysv", "cma", "xpmem", "knem"}) {
    if (transport == shm) return 2;
  }
  for (absl::string_view rdma : {"rc", "dc", "ud", "gga", "srd"}) {
    if (absl::StartsWith(transport, rdma)) return 3;
  }
  if (transport == "tcp") return 4;
  return 0;
}

}  // namespace

std::string LanesOf(absl::string_view endpoint_info) {
  std::vector<std::string> lanes;
  for (absl::string_view line : absl::StrSplit(endpoint_info, '\n')) {
    // "#   lane[0]:  1:tcp/lo.0 md[0]  -> md[0]/tcp/sysdev[255] am am_bw#0 keepalive wireup"
    size_t start = line.find("lane[");
    size_t arrow = line.find("->");
    if (start == absl::string_view::npos || arrow == absl::string_view::npos) continue;
    std::vector<absl::string_view> local =
        absl::StrSplit(line.substr(start, arrow - start), ' ', absl::SkipEmpty());
    std::vector<absl::string_view> remote =
        absl::StrSplit(line.substr(arrow + 2), ' ', absl::SkipEmpty());
    if (local.size() < 2 || remote.empty()) continue;
    std::string lane(local[1].substr(local[1].find(':') + 1));
    for (size_t i = 1; i < remote.size(); ++i) absl::StrAppend(&lane, " ", remote[i]);
    lanes.push_back(std::move(lane));
  }
  return absl::StrJoin(lanes, "; ");
}

std::string TransportOf(absl::string_view lanes) {
  static constexpr absl::string_view kNames[] = {"", "self", "shm", "rdma", "tcp"};
  int slowest = 0;
  for (absl::string_view lane : absl::StrSplit(lanes, "; ", absl::SkipEmpty())) {
    std::vector<absl::string_view> words = absl::StrSplit(lane, ' ', absl::SkipEmpty());
    bool carries_payload = false;
    for (absl::string_view role : words) {
      carries_payload |= role == "am" || absl::StartsWith(role, "am_bw") ||
                         absl::StartsWith(role, "rma_bw") || role == "rkey_ptr";
    }
    if (!carries_payload || words.empty()) continue;
    slowest = std::max(slowest, SlownessOf(words[0].substr(0, words[0].find('/'))));
  }
  return std::string(kNames[slowest]);
}

}  // namespace sluice
