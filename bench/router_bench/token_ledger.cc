#include "bench/router_bench/token_ledger.h"

#include <ctime>

namespace sluice::bench {

int64_t NowNanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace sluice::bench
