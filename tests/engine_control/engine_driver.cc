#include "tests/engine_control/engine_driver.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace sluice::testing {
namespace {

constexpr int kStepsMax = 200000;

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

void Collect(const StepResult& result, Answers* answers) {
  for (const TokenProduced& produced : result.tokens) {
    (*answers)[produced.key].tokens.push_back(produced.token);
  }
  for (const SequenceEnded& ended : result.ended) {
    Require(ended.status);
    (*answers)[ended.key].reason = ended.reason;
  }
}

void RequireBalanced(const Engine& engine) { SLUICE_CHECK(engine.Load().blocks.Balanced()); }

}  // namespace

std::string ModelDir(const std::string& name) {
  return absl::StrCat(SLUICE_SOURCE_DIR,
                      name == "deepseek-tiny" ? "/models/" : "/tests/golden/data/", name);
}

std::unique_ptr<Engine> LoadEngine(const EngineOptions& options) {
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(options);
  Require(engine.status());
  return *std::move(engine);
}

std::vector<SequenceInput> RandomRequests(uint64_t seed, int count, int max_prompt, int max_output,
                                          int64_t vocab_size) {
  std::mt19937_64 random(seed);
  const auto uniform = [&random](int low, int high) {
    return low + static_cast<int>(random() % static_cast<uint64_t>(high - low + 1));
  };
  std::vector<SequenceInput> inputs;
  for (int i = 0; i < count; ++i) {
    SequenceInput input;
    input.key = MakeKey(static_cast<uint64_t>(i) + 1);
    // Block boundaries among the lengths.
    const int length = i % 5 == 4
                           ? std::min(max_prompt, 64 * uniform(1, std::max(1, max_prompt / 64)))
                           : uniform(1, max_prompt);
    input.tokens = MakeTokens(random(), length, static_cast<int>(vocab_size));
    if (i % 3 == 0) {
      const std::vector<TokenId> common =
          MakeTokens(seed, uniform(0, length), static_cast<int>(vocab_size));
      std::copy(common.begin(), common.end(), input.tokens.begin());
    }
    if (i % 4 == 1) input.num_output_tokens = uniform(0, length - 1);
    SamplingParams& sampling = input.sampling;
    sampling.seed = random();
    sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    if (i % 3 == 1) sampling.top_p = 0.9f;
    if (i % 4 == 3) sampling.top_k = 20;
    if (i % 5 == 0) sampling.repetition_penalty = 1.1f;
    if (i % 7 == 0) sampling.frequency_penalty = 0.3f;
    sampling.max_tokens = input.num_output_tokens + uniform(1, max_output);
    if (i % 6 == 0) {
      sampling.stop_token_ids = {uniform(0, static_cast<int>(vocab_size) - 1)};
      sampling.min_tokens = input.num_output_tokens + 3;
    }
    sampling.num_top_logprobs = 3;
    inputs.push_back(std::move(input));
  }
  return inputs;
}

Answers RunAll(Engine* engine, const std::vector<SequenceInput>& inputs, bool alone) {
  Answers answers;
  for (const SequenceInput& input : inputs) {
    Require(engine->AddRun(input));
    while (alone && engine->HasWork()) Collect(engine->Step(), &answers);
  }
  for (int steps = 0; engine->HasWork(); ++steps) {
    SLUICE_CHECK(steps < kStepsMax);
    Collect(engine->Step(), &answers);
    RequireBalanced(*engine);
  }
  const BlockCounts blocks = engine->Load().blocks;
  SLUICE_CHECK(blocks.free + blocks.cached == blocks.total);
  return answers;
}

Answers RunDisaggregated(Engine* prefill, Engine* decode, const std::vector<SequenceInput>& inputs,
                         int abandon_every, HandoffStats* stats) {
  SLUICE_CHECK(prefill->fingerprint().digest == decode->fingerprint().digest);
  struct Transfer {
    SequenceInput input;
    Reservation reservation;
    int num_chunks = 0;
    int num_sent_tokens = 0;
    bool give_up = false;
  };
  std::deque<SequenceInput> to_plan(inputs.begin(), inputs.end());
  std::map<SequenceKey, Transfer> transfers;
  std::map<RequestId, Answer> by_request;
  std::map<SequenceKey, SequenceInput> decoding;
  int num_planned = 0;

  for (int steps = 0; !to_plan.empty() || prefill->HasWork() || decode->HasWork(); ++steps) {
    SLUICE_CHECK(steps < kStepsMax);
    while (!to_plan.empty()) {
      SequenceInput& input = to_plan.front();
      absl::StatusOr<Reservation> reservation = decode->Reserve(input);
      if (absl::IsResourceExhausted(reservation.status())) break;  // busy
      Require(reservation.status());
      Require(prefill->AddPrefill(input));
      Transfer transfer;
      transfer.reservation = *std::move(reservation);
      transfer.give_up = abandon_every > 0 && ++num_planned % abandon_every == 0;
      stats->cached_tokens += transfer.reservation.cached_tokens;
      const SequenceKey key = input.key;
      transfer.input = std::move(input);
      transfers.emplace(key, std::move(transfer));
      to_plan.pop_front();
    }

    const StepResult computed = prefill->Step();
    for (const ChunkComputed& chunk : computed.chunks) {
      const auto it = transfers.find(chunk.key);
      if (it == transfers.end()) continue;
      Transfer& transfer = it->second;
      const int cached = transfer.reservation.cached_tokens;
      for (size_t i = 0; i < chunk.blocks.size(); ++i) {
        const int first_token = chunk.begin + static_cast<int>(i) * kBlockTokens;
        if (first_token < cached) continue;
        const BlockId to =
            transfer.reservation.blocks[static_cast<size_t>((first_token - cached) / kBlockTokens)];
        const absl::Span<uint8_t> source = prefill->BlockBytes(chunk.blocks[i]);
        std::memcpy(decode->BlockBytes(to).data(), source.data(), source.size());
        ++stats->copied_blocks;
      }
      transfer.num_sent_tokens = chunk.end;
      if (transfer.give_up && ++transfer.num_chunks == 2) {
        ++stats->abandoned;
        SLUICE_CHECK(prefill->Cancel(chunk.key));
        decode->AbandonReservation(chunk.key, transfer.num_sent_tokens);
        SequenceInput again = transfer.input;
        again.key.attempt = Attempt(again.key.attempt.value + 1);
        to_plan.push_back(std::move(again));
        transfers.erase(it);
      }
    }
    for (const TokenProduced& produced : computed.tokens) {
      const auto it = transfers.find(produced.key);
      if (it == transfers.end()) continue;
      Require(decode->Activate(produced.key, produced.token));
      prefill->Release(produced.key);
      by_request[produced.key.request].tokens.push_back(produced.token);
      decoding.emplace(produced.key, std::move(it->second.input));
      transfers.erase(it);
    }

    const StepResult decoded = decode->Step();
    for (const TokenProduced& produced : decoded.tokens) {
      by_request[produced.key.request].tokens.push_back(produced.token);
    }
    for (const SequenceEnded& ended : decoded.ended) {
      Require(ended.status);
      Answer& answer = by_request[ended.key.request];
      answer.reason = ended.reason;
      if (ended.reason != EndReason::kPreempted) continue;
      ++stats->preempted;
      const SequenceInput& before = decoding.at(ended.key);
      SequenceInput rest = before;
      rest.key.attempt = Attempt(rest.key.attempt.value + 1);
      // What the client has: the answer so far, less what this attempt came with.
      const SequenceInput& original = *std::find_if(
          inputs.begin(), inputs.end(),
          [&](const SequenceInput& input) { return input.key.request == ended.key.request; });
      rest.tokens = original.tokens;
      rest.num_output_tokens = original.num_output_tokens;
      for (const SampledToken& token : answer.tokens) {
        rest.tokens.push_back(token.token);
        ++rest.num_output_tokens;
      }
      to_plan.push_back(std::move(rest));
    }
    RequireBalanced(*prefill);
    RequireBalanced(*decode);
  }
  SLUICE_CHECK(transfers.empty());
  for (const Engine* engine : {prefill, decode}) {
    const BlockCounts blocks = engine->Load().blocks;
    SLUICE_CHECK(blocks.free + blocks.cached == blocks.total);
  }
  Answers answers;
  for (auto& [request, answer] : by_request) {
    answers[SequenceKey{request, Attempt(1)}] = std::move(answer);
  }
  return answers;
}

std::string Difference(const Answers& actual, const Answers& expected) {
  if (actual.size() != expected.size()) {
    return absl::StrCat(actual.size(), " answers, not ", expected.size());
  }
  for (const auto& [key, answer] : expected) {
    const auto it = actual.find(key);
    if (it == actual.end()) return absl::StrCat("no answer to ", key.request.ToString());
    if (!(it->second == answer)) {
      return absl::StrCat("request ", key.request.ToString(), "\n  ", ToString(it->second), "\n  ",
                          ToString(answer));
    }
  }
  return "";
}

}  // namespace sluice::testing
