// The clients: one thread with epoll over keep-alive HTTP connections to the router's OpenAI
// completions, each of which sends its next request when the last one is answered. Prompts are
// token ids, so that the router tokenizes nothing. Methods are for one other thread, the one that
// measures.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/router_bench/token_ledger.h"

namespace sluice::bench {

struct HttpLoadOptions {
  std::string host = "127.0.0.1";
  int port = 0;
  std::string model;         // served name
  int num_connections = 64;  // connection i asks as stream i of the ledger
  int prompt_tokens = 8;     // 2 at least
  int max_tokens = 1;
  bool stream = false;
};

class HttpLoad {
 public:
  struct Counts {
    int64_t answers = 0;  // complete ones
    int64_t events = 0;   // with text; of streams
    int64_t tokens = 0;
    int64_t failures = 0;  // answers other than 200, and broken connections
    std::string first_failure;
  };
  // Nanoseconds.
  struct Samples {
    std::vector<int64_t> token;       // from the worker's send to its event here; of streams
    std::vector<int64_t> round_trip;  // of an answer
  };

  // Connects; sends nothing yet. `ledger` has as many streams as there are connections, and
  // outlives the load.
  static absl::StatusOr<std::unique_ptr<HttpLoad>> Connect(const HttpLoadOptions& options,
                                                           TokenLedger* ledger);
  virtual ~HttpLoad() = default;  // closes everything

  // Every connection sends its first request.
  virtual void Start() = 0;
  virtual Counts counts() const = 0;
  // Connections whose current answer has begun.
  virtual int num_begun() const = 0;
  // Keeps samples from now on; TakeSamples stops that and returns them.
  virtual void KeepSamples() = 0;
  virtual Samples TakeSamples() = 0;
};

}  // namespace sluice::bench
