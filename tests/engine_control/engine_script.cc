#include "tests/engine_control/engine_script.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sluice::testing {
namespace {

constexpr int kNumFamilies = 3;  // of prompts that share prefixes
constexpr int kScriptLength = 120;
constexpr int kDrainStepsMax = 20000;

}  // namespace

EngineScript::EngineScript(uint64_t seed) : seed_(seed), random_(seed) {
  options_.max_num_seqs = Uniform(1, 8);
  options_.max_num_batched_tokens = options_.max_num_seqs + Uniform(0, 200);
  options_.max_num_waiting = Uniform(1, 8);
  options_.max_model_len = Uniform(100, 500);
  options_.long_prompt_tokens = Uniform(20, 300);
  options_.attention_parity_position = Chance(50) ? 0 : Uniform(1, 200);
  options_.enable_prefix_cache = Chance(85);
  options_.expected_output_tokens = Chance(50) ? 0 : Uniform(1, 64);
  num_blocks_ = Uniform(2, 24);
  if (Chance(40)) {  // many long answers in a pool that holds few: preemptions
    long_answers_ = true;
    options_.max_num_seqs = Uniform(3, 8);
    options_.max_num_batched_tokens = Uniform(50, 200);
    options_.max_model_len = 500;
    options_.expected_output_tokens = 0;
    num_blocks_ = Uniform(6, 12);
  }
  fake_ = MakeFakeEngine(options_, num_blocks_, /*num_threads=*/seed_ % 16 == 0 ? 2 : 1);
}

std::string EngineScript::Run() {
  for (int i = 0; i < kScriptLength && failure_.empty(); ++i) {
    const int choice = Uniform(1, 100);
    if (choice <= 12) {
      Submit(RandomInput(), Kind::kPrefill);
    } else if (choice <= 28) {
      Submit(RandomInput(), Kind::kRun);
    } else if (choice <= 40) {
      Submit(RandomInput(), Kind::kReserved);
    } else if (choice <= 52) {
      if (Request* request = Pick([](const Request& r) { return r.pending; })) Resolve(request);
    } else if (choice <= 60) {
      if (Request* request = Pick([](const Request& r) { return r.pinned; })) {
        const SequenceKey key = request->input.key;
        fake_.engine->Release(key);
        requests_.erase(key);
      }
    } else if (choice <= 65) {
      CancelSome();
    } else if (choice <= 70) {
      if (const Request* request =
              Pick([](const Request& r) { return r.pending && r.reservation.cached_tokens > 0; })) {
        PinPrefix(*request);
      }
    } else if (choice <= 72 && !pins_.empty()) {
      Unpin();
    } else {
      Step();
    }
    CheckIntegrity("a call");
    if (!to_plan_anew_.empty() && Chance(50)) {
      SequenceInput input = std::move(to_plan_anew_.back());
      to_plan_anew_.pop_back();
      Submit(std::move(input), Chance(50) ? Kind::kRun : Kind::kReserved);
      CheckIntegrity("planning anew");
    }
  }

  // From here on nobody new comes, and whoever holds blocks from outside gives them back.
  int steps = 0;
  while (failure_.empty() && !requests_.empty()) {
    if (++steps > kDrainStepsMax) {
      Fail(absl::StrCat(requests_.size(), " sequences never end"));
      break;
    }
    if (Request* request = Pick([](const Request& r) { return r.pending; })) Resolve(request);
    if (!pins_.empty()) Unpin();
    while (Request* request = Pick([](const Request& r) { return r.pinned; })) {
      const SequenceKey key = request->input.key;
      fake_.engine->Release(key);
      requests_.erase(key);
    }
    const bool outside =
        !pins_.empty() || Pick([](const Request& r) { return r.pending || r.pinned; }) != nullptr;
    if (!requests_.empty() && !outside && !fake_.engine->HasWork()) {
      Fail("sequences wait, but the engine sees no work");
    }
    Step();
    CheckIntegrity("draining");
  }
  while (failure_.empty() && !pins_.empty()) Unpin();
  if (!failure_.empty()) return failure_;
  Step();
  const EngineLoad load = fake_.engine->Load();
  if (load.blocks.free + load.blocks.cached != num_blocks_ || load.running + load.waiting != 0 ||
      !fake_.engine->Holders().empty() || fake_.engine->HasWork()) {
    Fail("something is left in the engine");
  }
  coverage_.preemptions = fake_.engine->scheduler().num_preemptions();
  return failure_;
}

void EngineScript::Fail(const std::string& what) {
  if (failure_.empty()) failure_ = absl::StrCat("seed ", seed_, ": ", what);
}

void EngineScript::CheckIntegrity(const char* after) {
  const absl::Status status = fake_.engine->CheckIntegrity();
  if (!status.ok()) Fail(absl::StrCat("after ", after, ": ", status.message()));
}

SequenceInput EngineScript::RandomInput() {
  SequenceInput input;
  input.key = MakeKey(next_request_++);
  const int max_tokens = std::min<int>(options_.max_model_len, 64 * num_blocks_ + 20);
  const int length = Chance(20) ? Uniform(1, max_tokens) : Uniform(1, std::min(max_tokens, 150));
  input.tokens = MakeTokens(static_cast<uint64_t>(Uniform(1, kNumFamilies)), length);
  if (Chance(50)) {  // leave the family at some point
    const std::vector<TokenId> other = MakeTokens(random_(), length);
    const int branch = Uniform(0, length);
    std::copy(other.begin() + branch, other.end(), input.tokens.begin() + branch);
  }
  input.num_output_tokens = Chance(25) ? Uniform(0, length - 1) : 0;
  SamplingParams& sampling = input.sampling;
  sampling.seed = random_();
  sampling.max_tokens =
      input.num_output_tokens + Uniform(1, Chance(long_answers_ ? 80 : 20) ? 200 : 30);
  sampling.temperature = Chance(30) ? 0.0f : 1.0f;
  if (Chance(30)) sampling.top_k = Uniform(1, 20);
  if (Chance(30)) sampling.top_p = 0.8f;
  if (Chance(30)) sampling.repetition_penalty = 1.2f;
  if (Chance(20)) sampling.presence_penalty = 0.5f;
  if (!long_answers_ && Chance(50)) sampling.stop_token_ids = {Uniform(0, kFakeVocabSize - 1)};
  if (Chance(30)) sampling.min_tokens = input.num_output_tokens + Uniform(0, 20);
  if (Chance(50)) sampling.num_top_logprobs = Uniform(0, 3);
  if (Chance(30)) input.tenant_salt = "other tenant";
  return input;
}

void EngineScript::Submit(SequenceInput input, Kind kind) {
  const SequenceKey key = input.key;
  Request request;
  request.input = input;
  request.kind = kind;
  absl::Status status;
  if (kind == Kind::kReserved) {
    absl::StatusOr<Reservation> reservation = fake_.engine->Reserve(std::move(input));
    status = reservation.status();
    if (reservation.ok()) {
      request.reservation = *std::move(reservation);
      request.pending = true;
      coverage_.cached_tokens += request.reservation.cached_tokens;
    }
  } else {
    status = kind == Kind::kPrefill ? fake_.engine->AddPrefill(std::move(input))
                                    : fake_.engine->AddRun(std::move(input));
  }
  if (!status.ok()) {
    ++coverage_.refused;
    if (status.code() != absl::StatusCode::kResourceExhausted &&
        status.code() != absl::StatusCode::kInvalidArgument) {
      Fail(absl::StrCat("refused with ", status.ToString()));
    }
    return;
  }
  request.expected = OracleAnswer(request.input, options_.max_model_len);
  requests_.emplace(key, std::move(request));
}

void EngineScript::FillReservation(const Request& request, int num_tokens) {
  const int cached = request.reservation.cached_tokens;
  for (int i = cached; i < num_tokens; ++i) {
    const BlockId block =
        request.reservation.blocks[static_cast<size_t>((i - cached) / kBlockTokens)];
    const std::vector<BlockId> table(static_cast<size_t>(i / kBlockTokens) + 1, block);
    WriteFakeKv(*fake_.kv_store, table, i, request.input.tokens[static_cast<size_t>(i)]);
  }
}

void EngineScript::Resolve(Request* request) {
  const SequenceKey key = request->input.key;
  const int num_tokens = static_cast<int>(request->input.tokens.size());
  if (!request->quarantined && Chance(60)) {
    FillReservation(*request, num_tokens);
    const absl::Status status = fake_.engine->Activate(key, request->expected.tokens[0]);
    if (!status.ok()) Fail(absl::StrCat("activate: ", status.ToString()));
    request->pending = false;
    request->num_tokens_seen = 1;
    return;
  }
  if (!request->quarantined && Chance(40)) {
    const int num_known = Uniform(0, num_tokens);  // verified before the transfer died
    FillReservation(*request, num_known);
    fake_.engine->QuarantineReservation(key, 0);
    if (Chance(50)) fake_.engine->QuarantineReservation(key, num_known);
    request->quarantined = true;
    return;
  }
  const int num_verified = Uniform(0, num_tokens);
  FillReservation(*request, num_verified);
  fake_.engine->AbandonReservation(key, num_verified);
  ++coverage_.abandoned;
  requests_.erase(key);
}

void EngineScript::PinPrefix(const Request& request) {
  const int cached = request.reservation.cached_tokens / kBlockTokens;
  Pin pin;
  pin.begin = Uniform(0, cached - 1) * kBlockTokens;
  const int end = Uniform(pin.begin / kBlockTokens + 1, cached) * kBlockTokens;
  pin.tokens.assign(request.input.tokens.begin(), request.input.tokens.begin() + end);
  const SequenceKey key = request.input.key;
  if (fake_.engine->PinPrefix(key, pin.begin, end + kBlockTokens * (cached + 1)).ok()) {
    return Fail("pinned more than the cached prefix");
  }
  absl::StatusOr<PrefixPin> pinned = fake_.engine->PinPrefix(key, pin.begin, end);
  if (request.quarantined) {
    if (!absl::IsNotFound(pinned.status())) Fail("pinned under a transfer that is dead");
    return;
  }
  if (!pinned.ok()) return Fail(absl::StrCat("pin: ", pinned.status().ToString()));
  pin.blocks = *std::move(pinned);
  pins_.push_back(std::move(pin));
  ++coverage_.pins;
}

void EngineScript::Unpin() {
  std::swap(pins_.back(),
            pins_[static_cast<size_t>(Uniform(0, static_cast<int>(pins_.size()) - 1))]);
  const Pin pin = std::move(pins_.back());
  pins_.pop_back();
  CheckKv(pin.blocks.blocks, pin.tokens, pin.begin, static_cast<int>(pin.tokens.size()),
          "a pinned prefix");
  fake_.engine->Unpin(pin.blocks.id);
}

void EngineScript::CancelSome() {
  Request* request = Pick([](const Request&) { return true; });
  if (request == nullptr) return;
  const bool cancelled = fake_.engine->Cancel(request->input.key);
  if (cancelled == request->pending) Fail("cancel answered wrongly");
  if (!cancelled) return;
  ++coverage_.cancelled;
  requests_.erase(request->input.key);
}

void EngineScript::Step() {
  const bool had_work = fake_.engine->HasWork();
  const StepResult result = fake_.engine->Step();
  if (result.num_decode_tokens + result.num_prefill_tokens > options_.max_num_batched_tokens) {
    Fail("a step exceeds its token budget");
  }
  if (!had_work && !result.idle) Fail("the engine saw no work, and did some");
  if (result.idle && fake_.engine->HasWork())
    Fail("an idle step leaves work: the owner would spin");
  if (result.idle && !requests_.empty()) ++coverage_.stalls;
  for (const ChunkComputed& chunk : result.chunks) OnChunk(chunk);
  for (const TokenProduced& token : result.tokens) OnToken(token);
  for (const SequenceEnded& ended : result.ended) OnEnded(ended);
}

void EngineScript::OnChunk(const ChunkComputed& chunk) {
  const auto it = requests_.find(chunk.key);
  if (it == requests_.end() || it->second.kind != Kind::kPrefill) return Fail("a foreign chunk");
  Request& request = it->second;
  const std::vector<TokenId>& tokens = request.input.tokens;
  const int num_tokens = static_cast<int>(tokens.size());
  if (chunk.begin != request.num_reported || chunk.begin % kBlockTokens != 0 ||
      chunk.end <= chunk.begin || chunk.last != (chunk.end == num_tokens) ||
      (!chunk.last && chunk.end % kBlockTokens != 0) ||
      static_cast<int>(chunk.blocks.size()) * kBlockTokens < chunk.end - chunk.begin) {
    return Fail("a chunk is not the next whole blocks");
  }
  request.num_reported = chunk.end;
  CheckKv(chunk.blocks, tokens, chunk.begin, chunk.end, "a chunk");
}

void EngineScript::CheckKv(absl::Span<const BlockId> blocks, absl::Span<const TokenId> tokens,
                           int begin, int end, const char* whose) {
  const int64_t row_bytes = fake_.engine->layout().groups[0].bytes_per_token_and_layer;
  for (int i = begin; i < end; ++i) {
    const BlockId block = blocks[static_cast<size_t>((i - begin) / kBlockTokens)];
    TokenId token = -1;
    std::memcpy(&token, fake_.engine->BlockBytes(block).data() + i % kBlockTokens * row_bytes,
                sizeof(token));
    if (token != tokens[static_cast<size_t>(i)]) {
      return Fail(absl::StrCat("a block of ", whose, " holds foreign KV"));
    }
  }
}

void EngineScript::OnToken(const TokenProduced& produced) {
  const auto it = requests_.find(produced.key);
  if (it == requests_.end() || it->second.pending) return Fail("a foreign token");
  Request& request = it->second;
  const size_t position = static_cast<size_t>(request.num_tokens_seen++);
  if (position >= request.expected.tokens.size()) return Fail("a token after the end");
  if (produced.index != request.input.num_output_tokens + static_cast<int>(position)) {
    return Fail("token indices are not dense");
  }
  if (!(produced.token == request.expected.tokens[position])) {
    return Fail(absl::StrCat("token ", produced.token.token, " at index ", produced.index,
                             " is not the oracle's ", request.expected.tokens[position].token));
  }
  coverage_.cached_tokens += produced.cached_tokens;
  if (request.kind == Kind::kPrefill) {
    if (request.num_reported != static_cast<int>(request.input.tokens.size())) {
      return Fail("the first token came before the last chunk");
    }
    request.pinned = true;
    ++coverage_.answers;
  }
}

void EngineScript::OnEnded(const SequenceEnded& ended) {
  const auto it = requests_.find(ended.key);
  if (it == requests_.end() || it->second.kind == Kind::kPrefill) return Fail("a foreign end");
  Request& request = it->second;
  if (ended.reason == EndReason::kPreempted) {
    if (request.kind != Kind::kReserved) return Fail("a run was handed back");
    ++coverage_.handed_back;
    SequenceInput rest = request.input;
    rest.key.attempt = Attempt(rest.key.attempt.value + 1);
    for (int i = 0; i < request.num_tokens_seen; ++i) {
      rest.tokens.push_back(request.expected.tokens[static_cast<size_t>(i)].token);
      ++rest.num_output_tokens;
    }
    to_plan_anew_.push_back(std::move(rest));
  } else {
    ++coverage_.answers;
    if (ended.reason != request.expected.reason ||
        request.num_tokens_seen != static_cast<int>(request.expected.tokens.size())) {
      return Fail("an answer ended early, or for another reason than the oracle's");
    }
  }
  requests_.erase(it);
}

EngineScript::Request* EngineScript::Pick(bool (*matches)(const Request&)) {
  std::vector<Request*> candidates;
  for (auto& [key, request] : requests_) {
    if (matches(request)) candidates.push_back(&request);
  }
  if (candidates.empty()) return nullptr;
  return candidates[static_cast<size_t>(Uniform(0, static_cast<int>(candidates.size()) - 1))];
}

}  // namespace sluice::testing
