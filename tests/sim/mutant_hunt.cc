#include "tests/sim/mutant_hunt.h"

#include <cstddef>

namespace sluice::testing {
namespace {

// False: the minimiser did not do its work.
bool CheckMinimizer(const SimulationProgram& program, uint64_t seed) {
  const MinimizedSeed small = MinimizeSeed(program, seed);
  std::printf("  %zu of %d entries do: %s\n", small.kept.size(), small.num_entries,
              small.how.c_str());
  for (const std::string& text : small.script) std::printf("    %s\n", text.c_str());
  if (static_cast<int>(small.kept.size()) >= small.num_entries) {
    std::printf("  the minimised script is not smaller\n");
    return false;
  }
  if (!FailsWith(program, seed, small.kept, nullptr)) {
    std::printf("  the minimised script does not fail\n");
    return false;
  }
  for (size_t i = 0; i < small.kept.size(); ++i) {
    Selection fewer = small.kept;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
    if (FailsWith(program, seed, fewer, nullptr)) {
      std::printf("  the minimised script fails without its entry %d too\n", small.kept[i]);
      return false;
    }
  }
  return true;
}

}  // namespace

int HuntMutants(const SimulationProgram& program, const std::vector<NamedMutant>& mutants,
                uint64_t num_seeds, int num_minimised) {
  int num_survivors = 0, num_bad_minimisations = 0;
  for (const NamedMutant& mutant : mutants) {
    mutant.plant();  // the runs are in child processes, which inherit it
    const std::optional<FailedSeed> found = FindFailedSeed(program, 1, num_seeds);
    if (!found.has_value()) {
      ++num_survivors;
      std::printf("%s SURVIVED: the simulation does not notice this fault\n", mutant.name.c_str());
      continue;
    }
    std::printf("%s: seed %llu %s\n", mutant.name.c_str(),
                static_cast<unsigned long long>(found->seed), found->how.c_str());
    if (num_minimised-- > 0 && !CheckMinimizer(program, found->seed)) ++num_bad_minimisations;
    std::fflush(stdout);
  }
  std::printf("%zu faults, %d survived, %d minimised badly\n", mutants.size(), num_survivors,
              num_bad_minimisations);
  return num_survivors + num_bad_minimisations == 0 ? 0 : 1;
}

}  // namespace sluice::testing
