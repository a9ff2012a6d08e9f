#include "bench/loadgen/workload.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sluice::loadgen {
namespace {

constexpr int kTraceBlockTokens = 512;
constexpr int64_t kMaxTraceTokens = 16 << 20;  // of one prompt; larger is a broken file

using Generator = std::mt19937_64;

int32_t DrawToken(const TokenRange& range, Generator& generator) {
  return range.low_token +
         static_cast<int32_t>(generator() %
                              static_cast<uint64_t>(range.high_token - range.low_token + 1));
}

int Spread(int center, double spread, Generator& generator) {
  if (spread == 0) return center;
  const double unit = static_cast<double>(generator() >> 11) * 0x1p-53;  // [0, 1)
  return std::max(1, static_cast<int>(std::lround(center * (1 + spread * (2 * unit - 1)))));
}

absl::Status CheckRange(const TokenRange& range) {
  if (range.low_token < 0 || range.high_token < range.low_token) {
    return absl::InvalidArgumentError("token range: 0 <= low <= high is needed");
  }
  return absl::OkStatus();
}

// The tokens of one trace block: a function of its id alone, so equal ids give equal tokens.
void AppendTraceBlock(int64_t hash_id, int num_tokens, const TraceWorkloadOptions& options,
                      std::vector<int32_t>* prompt) {
  Generator generator(options.seed * 0x9E3779B97F4A7C15ull + static_cast<uint64_t>(hash_id));
  for (int i = 0; i < num_tokens; ++i) prompt->push_back(DrawToken(options.tokens, generator));
}

}  // namespace

absl::StatusOr<std::vector<PlannedRequest>> MakeRandomWorkload(
    const RandomWorkloadOptions& options) {
  if (absl::Status status = CheckRange(options.tokens); !status.ok()) return status;
  if (options.num_requests < 1) return absl::InvalidArgumentError("requests: must be at least 1");
  if (options.prompt_tokens < 1 || options.output_tokens < 1) {
    return absl::InvalidArgumentError("prompt-tokens and output-tokens: must be at least 1");
  }
  if (options.prompt_tokens_spread < 0 || options.prompt_tokens_spread > 1 ||
      options.output_tokens_spread < 0 || options.output_tokens_spread > 1) {
    return absl::InvalidArgumentError("spread: must lie in [0, 1]");
  }
  Generator generator(options.seed);
  std::vector<int32_t> shared;
  for (int i = 0; i < options.shared_prefix_tokens; ++i) {
    shared.push_back(DrawToken(options.tokens, generator));
  }
  std::vector<PlannedRequest> requests(static_cast<size_t>(options.num_requests));
  double arrival_seconds = 0;
  for (PlannedRequest& request : requests) {
    const int length = Spread(options.prompt_tokens, options.prompt_tokens_spread, generator);
    request.prompt = shared;
    request.prompt.resize(std::min<size_t>(shared.size(), static_cast<size_t>(length)));
    while (request.prompt.size() < static_cast<size_t>(length)) {
      request.prompt.push_back(DrawToken(options.tokens, generator));
    }
    request.max_tokens = Spread(options.output_tokens, options.output_tokens_spread, generator);
    if (options.requests_per_second > 0) {
      const double unit = (static_cast<double>(generator() >> 11) + 0.5) * 0x1p-53;
      arrival_seconds += -std::log(unit) / options.requests_per_second;
    }
    request.arrival = absl::Seconds(arrival_seconds);
  }
  return requests;
}

absl::StatusOr<TraceWorkload> LoadTraceWorkload(const TraceWorkloadOptions& options) {
  if (absl::Status status = CheckRange(options.tokens); !status.ok()) return status;
  if (options.length_scale <= 0 || options.length_scale > 1) {
    return absl::InvalidArgumentError("length-scale: must lie in (0, 1]");
  }
  std::ifstream file(options.path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read the trace ", options.path));
  TraceWorkload workload;
  std::string line;
  int line_number = 0;
  while (std::getline(file, line)) {
    ++line_number;
    if (line.empty()) continue;
    const nlohmann::json entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto bad = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat(options.path, ":", line_number, ": ", why));
    };
    if (!entry.is_object()) return bad("not a JSON object");
    for (const char* field : {"timestamp", "input_length", "output_length"}) {
      if (!entry.contains(field) || !entry[field].is_number()) {
        return bad(absl::StrCat(field, " is missing or not a number"));
      }
    }
    const double input_length = entry["input_length"].get<double>();
    const double output_length = entry["output_length"].get<double>();
    if (input_length < 1 || input_length > kMaxTraceTokens || output_length < 0 ||
        output_length > kMaxTraceTokens) {
      return bad("lengths are out of range");
    }
    const int prompt_tokens = std::max(1, static_cast<int>(input_length * options.length_scale));
    if (options.max_prompt_tokens > 0 && prompt_tokens > options.max_prompt_tokens) {
      ++workload.num_left_out;
      continue;
    }
    PlannedRequest request;
    request.arrival = absl::Milliseconds(entry["timestamp"].get<double>()) * options.time_scale;
    request.max_tokens = std::max(1, static_cast<int>(output_length * options.length_scale));
    if (options.max_output_tokens > 0 && request.max_tokens > options.max_output_tokens) {
      request.max_tokens = options.max_output_tokens;
      ++workload.num_cut;
    }
    const int block_tokens =
        std::max(1, static_cast<int>(kTraceBlockTokens * options.length_scale));
    if (entry.contains("hash_ids")) {
      if (!entry["hash_ids"].is_array()) return bad("hash_ids is not an array");
      for (const auto& id : entry["hash_ids"]) {
        if (!id.is_number_integer()) return bad("hash_ids holds something else than integers");
        const int left = prompt_tokens - static_cast<int>(request.prompt.size());
        if (left <= 0) break;
        AppendTraceBlock(id.get<int64_t>(), std::min(left, block_tokens), options, &request.prompt);
      }
    }
    // What the ids do not cover (rounding, or a trace without them) is unique to this line.
    const int left = prompt_tokens - static_cast<int>(request.prompt.size());
    if (left > 0) AppendTraceBlock(-line_number, left, options, &request.prompt);
    workload.requests.push_back(std::move(request));
    if (options.max_requests > 0 &&
        workload.requests.size() >= static_cast<size_t>(options.max_requests)) {
      break;
    }
  }
  if (workload.requests.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path, ": no usable request (", workload.num_left_out, " have prompts longer than ",
        options.max_prompt_tokens, " tokens; --length-scale makes them shorter)"));
  }
  std::vector<PlannedRequest>& requests = workload.requests;
  std::stable_sort(
      requests.begin(), requests.end(),
      [](const PlannedRequest& a, const PlannedRequest& b) { return a.arrival < b.arrival; });
  const absl::Duration first = requests.front().arrival;
  for (PlannedRequest& request : requests) request.arrival -= first;
  return workload;
}

}  // namespace sluice::loadgen
