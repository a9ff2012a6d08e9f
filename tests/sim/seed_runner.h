// Runs a simulation over many seeds, finds the one that fails, and makes it small.
//
// A seed is turned into a script: a list of entries, each a fault or a request with its time and
// numbers. Runs take place in child processes, so that a crash or a hang is a failure of its seed
// like any broken invariant. A failing seed is printed with the command that replays it, then run
// again with entries left out until no entry can be spared, and the script that is left is printed.
//
//   PROGRAM [--seeds N] [--first N]      many seeds, one summary line
//   PROGRAM --seed N [--keep 1,4,7]      one seed (or these entries of it), with a trace
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/sim/minimize.h"

namespace sluice::testing {

struct ScriptEntry {
  std::string text;               // for people: what happens, and when
  std::function<void()> install;  // makes it happen; called before the run begins
};

// The world of one seed.
class Simulation {
 public:
  virtual ~Simulation() = default;
  // The same for the same seed.
  virtual const std::vector<ScriptEntry>& script() const = 0;
  // Installs the selected entries and runs to the end; FailSimulation when something is wrong.
  virtual void Run(const Selection& selection) = 0;
};

struct SimulationProgram {
  std::string name;  // of the executable
  uint64_t default_seeds = 1000;
  std::function<std::unique_ptr<Simulation>(uint64_t seed, bool trace)> make;
  // After the last seed: what was seen. False: too little to prove anything.
  std::function<bool()> summarize;
};

int RunSimulationProgram(const SimulationProgram& program, int argc, char** argv);

// Prints what is wrong and ends the process with exit code 1.
[[noreturn]] void FailSimulation(absl::Duration at, const std::string& what);

struct FailedSeed {
  uint64_t seed = 0;
  std::string how;  // what the run printed, or how its process ended
};
// The first of the seeds that fails; none: all passed.
std::optional<FailedSeed> FindFailedSeed(const SimulationProgram& program, uint64_t first,
                                         uint64_t count);

struct MinimizedSeed {
  int num_entries = 0;  // of the whole script
  Selection kept;
  std::string how;                  // as in FailedSeed, of the minimised script
  std::vector<std::string> script;  // texts of the kept entries
};
MinimizedSeed MinimizeSeed(const SimulationProgram& program, uint64_t seed);

// Whether the seed fails with these entries only; `how` as in FailedSeed.
bool FailsWith(const SimulationProgram& program, uint64_t seed, const Selection& selection,
               std::string* how);

}  // namespace sluice::testing
