// How several workers share one machine: processor cores, memory for KV blocks, and who yields.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/config.h"

namespace sluice::cli {

struct Machine {
  int num_cores = 1;              // that this process may use (common/processors.h)
  uint64_t available_memory = 0;  // bytes, without swapping anything out
};
Machine ThisMachine();

struct WorkerShare {
  int threads = 1;
  ByteSize kv_cache;
};
// An even share for each of `num_workers`: all cores, at least one thread each, and a quarter of
// the memory that their weights leave, 64 MiB to 1 GiB each.
WorkerShare ShareMachine(const Machine& machine, int num_workers, uint64_t weight_bytes);

// RESOURCE_EXHAUSTED if weights and KV blocks of all workers do not fit. Each worker asks for
// itself too, but those that start together see the same free memory.
absl::Status CheckMemory(const Machine& machine, int num_workers, uint64_t weight_bytes,
                         ByteSize kv_cache_per_worker);

// On one machine a long prompt yields to the answers that are being written: fully where there is a
// core for every compute thread, so that it always finds one; with a share of its own where the
// workers' threads crowd the cores, or endless answers would keep it from them. `num_threads`: of
// all workers together.
int PrefillNiceness(int num_threads, int num_cores);

}  // namespace sluice::cli
