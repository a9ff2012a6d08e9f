// What the machine can do at this moment: the figures that a measurement is divided by. Shared
// machines change from second to second, so probe and measurement take turns and the best of each
// counts. Everything runs on the calling thread and the pool's.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "engine/device/thread_pool.h"

namespace sluice {

using Region = absl::Span<const uint8_t>;

class MachineProbe {
 public:
  // REQUIRES: `pool` outlives the probe. Regions are what ReadBandwidth reads, in turns: give it
  // the very memory that the measured code reads, more than the caches hold.
  MachineProbe(ThreadPool* pool, std::vector<Region> regions);

  // Bytes per second of plain reading by all threads, about `bytes` of them.
  double ReadBandwidth(int64_t bytes = int64_t{128} << 20);
  // Bytes per second read by all threads from `region`, which may sit in a cache.
  double ReadBandwidthOf(Region region);
  // bf16 floating-point operations per second of all threads' tile units (AMX) on registers alone;
  // 0 without AMX.
  double TileFlops();
  // Cycles per second of this thread's core, under the load that it has now.
  static double ClockHz();

 private:
  double ReadPieces();

  ThreadPool* const pool_;
  const std::vector<Region> regions_;
  size_t next_region_ = 0;
  std::vector<Region> pieces_;  // of the read in progress
};

// Best of several repetitions, alternating with the probe: `rate` is the largest of work / seconds.
struct Measured {
  double seconds = 0;    // the shortest run
  double bandwidth = 0;  // best of the probe, bytes per second
  double tile_flops = 0;
};
// Runs until `repetitions` and `min_seconds` are both reached. `run` returns its seconds.
Measured Measure(MachineProbe& probe, int repetitions, double min_seconds,
                 const std::function<double()>& run);

}  // namespace sluice
