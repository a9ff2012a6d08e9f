// The main function of a worker program: configuration, logging, admin server, engine, transfer
// channel, worker, and draining on SIGTERM. The programs differ in the roles they offer.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "services/worker_runtime/worker.h"

namespace sluice::worker {

struct WorkerProgram {
  std::string name;
  std::string description;
  std::string examples;  // for --help
  // Role and its handler; the first is the default.
  std::vector<std::pair<std::string, HandlerFactory>> roles;
};

// Returns the exit status: 0 after a drain or --help, 1 when the worker could not start or go on, 2
// for a bad configuration.
int RunWorkerProgram(const WorkerProgram& program, int argc, const char* const* argv);

}  // namespace sluice::worker
