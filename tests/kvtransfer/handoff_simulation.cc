// The handoff protocol under many seeded faulty networks (handoff_world.h says what is checked):
//   handoff_simulation [--seeds N] [--first N]   many seeds, one summary line
//   handoff_simulation --seed N                  one seed, with a trace
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/kvtransfer/handoff_world.h"

int main(int argc, char** argv) {
  uint64_t first = 1, count = 1000;
  bool trace = false;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string flag = argv[i];
    uint64_t value = std::strtoull(argv[i + 1], nullptr, 10);
    if (flag == "--seed") {
      first = value;
      count = 1;
      trace = true;
    } else if (flag == "--seeds") {
      count = value;
    } else if (flag == "--first") {
      first = value;
    } else {
      std::printf("unknown flag %s\n", argv[i]);
      return 2;
    }
  }
  uint64_t num_polls = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    num_polls += sluice::RunHandoffSeed(seed, trace);
  }
  std::printf("%llu seeds passed (%llu polls)\n", static_cast<unsigned long long>(count),
              static_cast<unsigned long long>(num_polls));
  return 0;
}
