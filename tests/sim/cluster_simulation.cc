// The whole cluster under many seeded scripts of faults; cluster_world.h says what is checked,
// seed_runner.h how to call it.
#include "tests/sim/cluster_world.h"

int main(int argc, char** argv) {
  return sluice::testing::RunSimulationProgram(sluice::testing::ClusterSimulation(), argc, argv);
}
