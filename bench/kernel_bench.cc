// Speed of the CPU backend's heavy operations, each beside what the machine could do in the same
// seconds: the tile unit's throughput and the bandwidth of plain reads of the same memory.
//
//   kernel_bench [--only linear,experts,attention,pool] [--isa auto] [--threads 0] [--json FILE]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/machine_probe.h"
#include "engine/device/bf16.h"
#include "engine/device/cpu/cpu_backend.h"

namespace sluice {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Values do not matter for speed, as long as none is denormal, infinite or NaN.
MatrixSource SomeMatrix(int64_t rows, int64_t columns) {
  return {rows, columns, [columns](int64_t row, float* out) {
            for (int64_t c = 0; c < columns; ++c) {
              out[c] = static_cast<float>((row * 31 + c * 7) % 61 - 30) / 1024.0f;
            }
          }};
}

Activations SomeActivations(int64_t rows, int64_t columns, int64_t parts = 1) {
  Activations x(DType::kBF16, columns, parts);
  x.ReserveRows(rows);
  std::mt19937 random(1);
  auto* values = static_cast<Bf16*>(x.data());
  for (int64_t i = 0; i < rows * x.stride(); ++i) {
    values[i] = FloatToBf16(static_cast<float>(random() % 256) / 256.0f - 0.5f);
  }
  return x;
}

Region BytesOf(const PackedMatrix& matrix) {
  const auto& cpu = static_cast<const CpuMatrix&>(matrix);
  return {cpu.panel(0), static_cast<size_t>(cpu.size_bytes())};
}

class KernelBench {
 public:
  KernelBench(Isa isa, int num_threads, int repetitions, double min_seconds)
      : backend_(DType::kBF16, isa, num_threads),
        pool_(backend_.num_threads()),
        repetitions_(repetitions),
        min_seconds_(min_seconds) {}

  void Linear();
  void Experts();
  void Attention();
  void Pool();
  nlohmann::ordered_json TakeResults() { return std::move(results_); }
  const CpuBackend& backend() const { return backend_; }

 private:
  template <typename Fn>
  static double Timed(const Fn& fn) {
    const auto start = SteadyClock::now();
    fn();
    return std::chrono::duration<double>(SteadyClock::now() - start).count();
  }

  // One line of a table: `flops` and `bytes` of one run, against the ceilings.
  void Report(const std::string& operation, const std::string& shape, double flops, double bytes,
              const Measured& best) {
    const double tile_share = best.tile_flops > 0 ? flops / best.seconds / best.tile_flops : 0;
    const double bandwidth_share = best.bandwidth > 0 ? bytes / best.seconds / best.bandwidth : 0;
    std::printf(
        "%-10s %-34s %9.1f us %9.1f GFLOP/s %5.1f %% of tiles %7.2f GB/s %6.1f %% of %.1f\n",
        operation.c_str(), shape.c_str(), best.seconds * 1e6, flops / best.seconds / 1e9,
        tile_share * 100, bytes / best.seconds / 1e9, bandwidth_share * 100, best.bandwidth / 1e9);
    std::fflush(stdout);
    results_.push_back({{"operation", operation},
                        {"shape", shape},
                        {"seconds", best.seconds},
                        {"gflops", flops / best.seconds / 1e9},
                        {"tile_ceiling_gflops", best.tile_flops / 1e9},
                        {"gbytes_per_second", bytes / best.seconds / 1e9},
                        {"memory_gbytes_per_second", best.bandwidth / 1e9}});
  }

  CpuBackend backend_;
  ThreadPool pool_;  // the probe's
  const int repetitions_;
  const double min_seconds_;
  nlohmann::ordered_json results_ = nlohmann::ordered_json::array();
};

// One weight again and again (in cache: what the arithmetic reaches), and a rotation through more
// weights than caches hold (what a decode step sees).
void KernelBench::Linear() {
  constexpr int64_t kColumns = 2048, kRows = 2048;
  constexpr int kNumWeights = 64;  // 512 MiB
  std::vector<std::unique_ptr<PackedMatrix>> weights;
  std::vector<Region> regions;
  for (int i = 0; i < kNumWeights; ++i) {
    weights.push_back(backend_.Pack(SomeMatrix(kRows, kColumns)));
    regions.push_back(BytesOf(*weights.back()));
  }
  MachineProbe probe(&pool_, regions);
  size_t next = 0;
  for (const int rows : {1, 2, 4, 8, 16, 32, 48, 64, 128, 256, 512}) {
    const Activations x = SomeActivations(rows, kColumns);
    std::vector<float> y(static_cast<size_t>(rows * kRows));
    const double flops = 2.0 * rows * kRows * kColumns;
    const double bytes = static_cast<double>(weights[0]->size_bytes());
    const auto run = [&](const PackedMatrix& weight) {
      backend_.Linear({.x = &x, .rows = rows, .weight = &weight, .y = y.data(), .y_stride = kRows});
    };
    if (rows <= 64) {
      constexpr int kWeightsPerRun = 8;
      Measured cold = Measure(probe, repetitions_, min_seconds_, [&] {
        return Timed([&] {
                 for (int i = 0; i < kWeightsPerRun; ++i) {
                   run(*weights[next++ % weights.size()]);
                 }
               }) /
               kWeightsPerRun;
      });
      Report("linear", absl::StrCat(rows, " x 2048 x 2048, from memory"), flops, bytes, cold);
    }
    if (rows >= 32) {
      Measured hot = Measure(probe, repetitions_, min_seconds_, [&] {
        run(*weights[0]);  // the probe has emptied the caches
        return Timed([&] { run(*weights[0]); });
      });
      Report("linear", absl::StrCat(rows, " x 2048 x 2048, from cache"), flops, bytes, hot);
    }
  }
}

// The routed and shared experts of one DeepSeek-V2-Lite layer, tokens spread evenly.
void KernelBench::Experts() {
  constexpr int64_t kHidden = 2048, kIntermediate = 1408;
  constexpr int kExperts = 64, kChosen = 6;
  std::vector<FeedForwardWeights> experts;
  std::vector<Region> regions;
  for (int e = 0; e < kExperts; ++e) {
    experts.push_back({backend_.PackGateUp(SomeMatrix(kIntermediate, kHidden),
                                           SomeMatrix(kIntermediate, kHidden)),
                       backend_.Pack(SomeMatrix(kHidden, kIntermediate))});
    regions.push_back(BytesOf(*experts.back().gate_up));
    regions.push_back(BytesOf(*experts.back().down));
  }
  MachineProbe probe(&pool_, regions);
  const double expert_bytes =
      static_cast<double>(experts[0].gate_up->size_bytes() + experts[0].down->size_bytes());
  int first = 0;
  for (const int rows : {1, 8, 32, 128, 512}) {
    const Activations x = SomeActivations(rows, kHidden);
    std::vector<float> y(static_cast<size_t>(rows * kHidden));
    std::vector<int32_t> chosen(static_cast<size_t>(rows * kChosen));
    const std::vector<float> weights(chosen.size(), 0.1f);
    const int distinct = std::min(kExperts, rows * kChosen);
    const Measured best = Measure(probe, repetitions_, min_seconds_, [&] {
      // Other experts each time, so that they come from memory.
      for (int r = 0; r < rows; ++r) {
        int32_t* ids = &chosen[static_cast<size_t>(r) * kChosen];
        for (int j = 0; j < kChosen; ++j) ids[j] = (first + r * kChosen + j) % kExperts;
        std::sort(ids, ids + kChosen);
      }
      first += distinct;
      return Timed([&] {
        backend_.FeedForward({.x = &x,
                              .rows = rows,
                              .experts = experts,
                              .experts_per_token = kChosen,
                              .chosen = chosen.data(),
                              .weights = weights.data(),
                              .y = y.data()});
      });
    });
    Report("experts", absl::StrCat(rows, " tokens, 6 of 64, 2048 x 1408"),
           rows * kChosen * 6.0 * kHidden * kIntermediate, distinct * expert_bytes, best);
  }
}

void KernelBench::Attention() {
  struct Shape {
    int heads, sequences, start, count;
  };
  constexpr int64_t kLatent = 512, kRope = 64, kRowDim = kLatent + kRope, kBlockTokens = 64;
  constexpr int64_t kBlockBytes = kBlockTokens * kRowDim * 2;
  constexpr int64_t kBlocks = 4608;  // 340 MB
  Buffer cache(kBlocks * kBlockBytes);
  auto* values = cache.as<Bf16>();
  for (int64_t i = 0; i < kBlocks * kBlockTokens * kRowDim; ++i) {
    values[i] = FloatToBf16(static_cast<float>(i % 127 - 63) / 64.0f);
  }
  MachineProbe probe(&pool_, {Region(cache.as<uint8_t>(), cache.size_bytes())});
  int64_t next_block = 0;
  for (const Shape& s : {Shape{4, 1, 4095, 1}, Shape{16, 1, 4095, 1}, Shape{128, 1, 4095, 1},
                         Shape{16, 1, 511, 1}, Shape{4, 32, 511, 1}, Shape{16, 32, 511, 1},
                         Shape{16, 1, 0, 512}, Shape{16, 1, 3584, 512}}) {
    const int rows = s.sequences * s.count, length = s.start + s.count;
    const Activations q = SomeActivations(rows, kRowDim, s.heads);
    Activations out(DType::kBF16, kLatent, s.heads);
    out.ReserveRows(rows);
    const int64_t blocks_each = (length + kBlockTokens - 1) / kBlockTokens;
    std::vector<BlockId> table(static_cast<size_t>(blocks_each * s.sequences));
    std::vector<AttentionSequence> sequences;
    const int layers = s.count == 1 ? 8 : 1;
    const Measured best = Measure(probe, repetitions_, min_seconds_, [&] {
      double seconds = 0;
      for (int layer = 0; layer < layers; ++layer) {
        // Other blocks each time, so that they come from memory.
        for (BlockId& id : table) id = BlockId(static_cast<int32_t>(next_block++ % kBlocks));
        sequences.clear();
        for (int i = 0; i < s.sequences; ++i) {
          sequences.push_back(
              {i * s.count, s.count, s.start,
               absl::MakeConstSpan(table).subspan(static_cast<size_t>(i * blocks_each),
                                                  static_cast<size_t>(blocks_each))});
        }
        seconds += Timed([&] {
          backend_.MlaAttention(
              {.q = &q,
               .heads = s.heads,
               .latent_dim = kLatent,
               .scale = 0.05f,
               .kv_cache = {cache.as<uint8_t>(), kBlockBytes, kBlockTokens, kRowDim},
               .sequences = sequences,
               .out = &out});
        });
      }
      return seconds / layers;
    });
    const double seen = s.count * (s.start + (s.count + 1) / 2.0) * s.sequences;
    Report(
        "attention",
        absl::StrCat(s.sequences, " x ", s.count, " tokens at ", s.start, ", ", s.heads, " heads"),
        2.0 * seen * s.heads * (kRowDim + kLatent),
        static_cast<double>(s.sequences) * length * kRowDim * 2, best);
  }
}

// What a parallel loop costs that has nothing to do.
void KernelBench::Pool() {
  constexpr int kLoops = 1000;
  double best = 0;
  for (int i = 0; i < repetitions_; ++i) {
    const double seconds = Timed([&] {
      for (int loop = 0; loop < kLoops; ++loop) pool_.ParallelFor(8, [](int, int) {});
    });
    best = i == 0 ? seconds : std::min(best, seconds);
  }
  std::printf("%-10s %-34s %9.2f us\n", "pool", "an empty loop of 8 tasks", best / kLoops * 1e6);
  results_.push_back({{"operation", "pool"}, {"shape", "8 tasks"}, {"seconds", best / kLoops}});
}

int Main(int argc, char** argv) {
  CLI::App app("Speed of the CPU kernels against the machine's ceilings.");
  std::string isa_name = "auto", only = "linear,experts,attention,pool", json_path;
  int threads = 0, repetitions = 10;
  double min_seconds = 0.5;
  app.add_option("--only", only, "Which of linear,experts,attention,pool");
  app.add_option("--isa", isa_name, "auto, portable, avx2, avx512 or amx");
  app.add_option("--threads", threads, "Threads; 0: all");
  app.add_option("--reps", repetitions, "Repetitions at least; the best counts")
      ->check(CLI::Range(1, 100000));
  app.add_option("--seconds", min_seconds, "Time for each line at least");
  app.add_option("--json", json_path, "Also write the results here");
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<Isa> isa = ChooseIsa(isa_name);
  if (!isa.ok()) {
    std::fprintf(stderr, "kernel_bench: %s\n", std::string(isa.status().message()).c_str());
    return 1;
  }
  KernelBench bench(*isa, threads, repetitions, min_seconds);
  std::printf("%s, %d threads, %.2f GHz\n", bench.backend().kernel_family().c_str(),
              bench.backend().num_threads(), MachineProbe::ClockHz() / 1e9);
  if (absl::StrContains(only, "pool")) bench.Pool();
  if (absl::StrContains(only, "linear")) bench.Linear();
  if (absl::StrContains(only, "experts")) bench.Experts();
  if (absl::StrContains(only, "attention")) bench.Attention();
  if (!json_path.empty()) {
    std::ofstream file(json_path);
    file << bench.TakeResults().dump(1) << "\n";
    if (!file) {
      std::fprintf(stderr, "kernel_bench: cannot write %s\n", json_path.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
