#include "bench/machine_probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "engine/device/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "engine/device/cpu/amx_tile.h"
#endif

namespace sluice {
namespace {

using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// Results nobody wants, so that reads are not optimised away.
std::atomic<uint64_t> g_sink{0};

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t ReadAvx512(Region region) {
  constexpr size_t kAhead = 4096;
  __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                    _mm512_setzero_si512()};
  for (size_t i = 0; i + 256 <= region.size(); i += 256) {
    const uint8_t* p = region.data() + i;
    for (size_t j = 0; j < 4; ++j) {
      __builtin_prefetch(p + kAhead + 64 * j, 0, 2);
      sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(p + 64 * j));
    }
  }
  alignas(64) uint64_t words[8];
  _mm512_store_si512(
      words, _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3])));
  return words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ words[5] ^ words[6] ^ words[7];
}

// Four independent sums, operands in registers.
void TileLoop(int iterations) {
  const cpu::TileScope tiles;
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
  SLUICE_TILE_ZERO(4);
  SLUICE_TILE_ZERO(5);
  for (int i = 0; i < iterations; ++i) {
    SLUICE_TILE_DOT(0, 4, 5);
    SLUICE_TILE_DOT(1, 4, 5);
    SLUICE_TILE_DOT(2, 4, 5);
    SLUICE_TILE_DOT(3, 4, 5);
  }
}
#endif

uint64_t ReadPlain(Region region) {
  uint64_t sum[4] = {};
  const uint64_t* words = reinterpret_cast<const uint64_t*>(region.data());
  for (size_t i = 0; i + 4 <= region.size() / 8; i += 4) {
    for (size_t j = 0; j < 4; ++j) sum[j] ^= words[i + j];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

uint64_t Read(Region region) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return ReadAvx512(region);
#endif
  return ReadPlain(region);
}

}  // namespace

MachineProbe::MachineProbe(ThreadPool* pool, std::vector<Region> regions)
    : pool_(pool), regions_(std::move(regions)) {}

double MachineProbe::ReadPieces() {
  const auto start = SteadyClock::now();
  pool_->ParallelFor(static_cast<int>(pieces_.size()), [&](int task, int) {
    g_sink.fetch_xor(Read(pieces_[static_cast<size_t>(task)]), std::memory_order_relaxed);
  });
  const double seconds = SecondsSince(start);
  double bytes = 0;
  for (const Region& piece : pieces_) bytes += static_cast<double>(piece.size());
  return bytes / seconds;
}

double MachineProbe::ReadBandwidth(int64_t bytes) {
  constexpr size_t kPieceBytes = size_t{4} << 20;
  pieces_.clear();
  while (bytes > 0 && !regions_.empty()) {
    const Region region = regions_[next_region_++ % regions_.size()];
    for (size_t at = 0; at < region.size(); at += kPieceBytes) {
      pieces_.push_back(region.subspan(at, kPieceBytes));
    }
    bytes -= static_cast<int64_t>(region.size());
  }
  return pieces_.empty() ? 0 : ReadPieces();
}

double MachineProbe::ReadBandwidthOf(Region region) {
  const size_t threads = static_cast<size_t>(pool_->num_threads());
  const size_t piece = region.size() / threads / 256 * 256;
  pieces_.clear();
  for (size_t t = 0; t < threads; ++t) pieces_.push_back(region.subspan(t * piece, piece));
  return ReadPieces();
}

double MachineProbe::TileFlops() {
#if defined(__x86_64__)
  if (!IsaAvailable(Isa::kAmx)) return 0;
  constexpr int kIterations = 8000;
  // Small tasks, so that a thread that starts late only does less.
  const int tasks = 8 * pool_->num_threads();
  constexpr int kIterationsPerTask = kIterations / 8;
  const auto start = SteadyClock::now();
  pool_->ParallelFor(tasks, [](int, int) { TileLoop(kIterationsPerTask); });
  constexpr double kFlopsPerIteration = 4 * 2.0 * 16 * 16 * 32;
  return tasks * kIterationsPerTask * kFlopsPerIteration / SecondsSince(start);
#else
  return 0;
#endif
}

double MachineProbe::ClockHz() {
  constexpr int64_t kSteps = 1'000'000;
  const auto start = SteadyClock::now();
  uint64_t x = 1;
  for (int64_t i = 0; i < kSteps; ++i) {
    x += 1;
    asm volatile("" : "+r"(x));  // one dependent addition a cycle
  }
  const double seconds = SecondsSince(start);
  g_sink.fetch_xor(x, std::memory_order_relaxed);
  return static_cast<double>(kSteps) / seconds;
}

Measured Measure(MachineProbe& probe, int repetitions, double min_seconds,
                 const std::function<double()>& run) {
  Measured best;
  run();  // warm up: buffers get their size
  const auto start = SteadyClock::now();
  for (int i = 0; i < repetitions || SecondsSince(start) < min_seconds; ++i) {
    best.bandwidth = std::max(best.bandwidth, probe.ReadBandwidth());
    best.tile_flops = std::max(best.tile_flops, probe.TileFlops());
    const double seconds = run();
    best.seconds = i == 0 ? seconds : std::min(best.seconds, seconds);
  }
  return best;
}

}  // namespace sluice
