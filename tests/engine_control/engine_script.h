// A random script of calls on one engine, with everything that must hold checked after every call:
//  - CheckIntegrity: counts balanced, tables and references agree, no plan of fewer than no tokens,
//    only full published blocks shared;
//  - tokens and end reasons are the oracle's, each sequence run alone;
//  - chunks cover the prompt in whole blocks, in order, and the blocks hold its KV;
//  - a pinned prefix holds its KV until it is unpinned, whatever becomes of its reservation;
//  - in the end nothing is held, and everybody who was not cancelled has an answer.
// A function of the seed.
#pragma once

#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/support/fake_engine.h"

namespace sluice::testing {

class EngineScript {
 public:
  explicit EngineScript(uint64_t seed);

  // "" when all held; else what broke.
  std::string Run();

  // What the script met, so that a test can see that it reaches what it is for.
  struct Coverage {
    int64_t preemptions = 0, handed_back = 0, cached_tokens = 0;
    int64_t cancelled = 0, abandoned = 0, refused = 0, answers = 0, stalls = 0, pins = 0;
  };
  const Coverage& coverage() const { return coverage_; }

 private:
  enum class Kind { kPrefill, kRun, kReserved };
  struct Request {
    SequenceInput input;
    Kind kind = Kind::kRun;
    Answer expected;
    Reservation reservation;
    bool pending = false;  // a reservation that is not activated or abandoned
    bool quarantined = false;
    bool pinned = false;  // a prefill that has its token
    int num_tokens_seen = 0;
    int num_reported = 0;
  };

  struct Pin {  // tokens [begin, ...) of a cached prefix, held for a reader outside
    PrefixPin blocks;
    std::vector<TokenId> tokens;
    int begin = 0;
  };

  int Uniform(int low, int high) {  // inclusive
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Uniform(1, 100) <= percent; }

  void Fail(const std::string& what);
  void CheckIntegrity(const char* after);
  SequenceInput RandomInput();
  void Submit(SequenceInput input, Kind kind);
  void FillReservation(const Request& request, int num_tokens);
  void Resolve(Request* request);
  void PinPrefix(const Request& request);
  void Unpin();
  void CheckKv(absl::Span<const BlockId> blocks, absl::Span<const TokenId> tokens, int begin,
               int end, const char* whose);
  void CancelSome();
  void Step();
  void OnChunk(const ChunkComputed& chunk);
  void OnToken(const TokenProduced& produced);
  void OnEnded(const SequenceEnded& ended);
  Request* Pick(bool (*matches)(const Request&));

  const uint64_t seed_;
  std::mt19937_64 random_;
  SchedulerOptions options_;
  int64_t num_blocks_ = 0;
  bool long_answers_ = false;
  FakeEngine fake_;
  std::map<SequenceKey, Request> requests_;  // live ones
  std::vector<SequenceInput> to_plan_anew_;
  std::vector<Pin> pins_;
  uint64_t next_request_ = 1;
  std::string failure_;
  Coverage coverage_;
};

}  // namespace sluice::testing
