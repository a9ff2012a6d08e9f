// Shows that a simulation finds planted faults: for each mutant of a list, some seed must fail.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "tests/sim/seed_runner.h"

namespace sluice::testing {

struct NamedMutant {
  std::string name;
  std::function<void()> plant;
};

// Hunts each mutant over the first `num_seeds` seeds. The failing seeds of the first
// `num_minimised` are minimised too, and what is left must be smaller than the script it came from
// and fail still. Returns the exit code of the test: 0 when no mutant survived.
int HuntMutants(const SimulationProgram& program, const std::vector<NamedMutant>& mutants,
                uint64_t num_seeds, int num_minimised);

}  // namespace sluice::testing
