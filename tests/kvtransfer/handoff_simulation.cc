// The handoff protocol under many seeded faulty networks; handoff_world.h says what is checked,
// tests/sim/seed_runner.h how to call it.
#include "tests/kvtransfer/handoff_world.h"

int main(int argc, char** argv) {
  return sluice::testing::RunSimulationProgram(sluice::testing::HandoffSimulation(), argc, argv);
}
