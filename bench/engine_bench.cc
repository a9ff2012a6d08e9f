// Speed of the model itself, without scheduler or network: prefill and decode at several depths,
// beside the memory bandwidth of this machine at this moment. Numbers on shared machines vary
// by 1.6x: compare only within one run, and take medians.
//
//   engine_bench models/deepseek-tiny [--isa auto] [--dtype bf16|f32] [--threads 2] [--reps 5]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "engine/model/deepseek_model.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Bytes per second read by `num_threads` from arrays beyond the caches.
double ReadBandwidth(int num_threads) {
  constexpr size_t kWords = size_t{64} << 20 >> 3;  // 64 MiB a thread
  std::vector<std::vector<uint64_t>> arrays(static_cast<size_t>(num_threads));
  for (auto& array : arrays) array.assign(kWords, 1);
  std::vector<uint64_t> sums(static_cast<size_t>(num_threads));
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  for (size_t t = 0; t < arrays.size(); ++t) {
    threads.emplace_back([&, t] {
      uint64_t a = 0, b = 0, c = 0, d = 0;
      for (size_t i = 0; i < kWords; i += 4) {
        a ^= arrays[t][i];
        b ^= arrays[t][i + 1];
        c ^= arrays[t][i + 2];
        d ^= arrays[t][i + 3];
      }
      sums[t] = a + b + c + d;
    });
  }
  for (std::thread& thread : threads) thread.join();
  volatile uint64_t keep = sums[0];
  (void)keep;
  return static_cast<double>(arrays.size() * kWords * 8) / Seconds(Clock::now() - start);
}

class Bench {
 public:
  Bench(std::unique_ptr<Model> model, int64_t num_blocks) : model_(std::move(model)) {
    for (int64_t i = 0; i < num_blocks; ++i) blocks_.push_back(BlockId(static_cast<int32_t>(i)));
    logits_.resize(static_cast<size_t>(64 * model_->spec().vocab_size));
  }

  // Seconds of a prompt of `count` tokens after `depth` others, in chunks of 512.
  double Prefill(int depth, int count) {
    const auto start = Clock::now();
    for (int done = 0; done < count; done += 512) {
      const int chunk = std::min(512, count - done);
      Run(depth + done, chunk, done + chunk == count ? 1 : 0, 1);
    }
    return Seconds(Clock::now() - start);
  }
  // Seconds of one decode step of `batch` sequences at `depth`. They share blocks, which the model
  // neither knows nor minds: all write the same bytes.
  double Decode(int depth, int batch, int steps) {
    const auto start = Clock::now();
    for (int i = 0; i < steps; ++i) Run(depth + i, 1, 1, batch);
    return Seconds(Clock::now() - start) / steps;
  }

 private:
  void Run(int position, int count, int logit_rows, int batch) {
    std::vector<TokenId> tokens;
    for (int i = 0; i < count; ++i) {
      tokens.push_back(static_cast<TokenId>((position + i) * 7919 % model_->spec().vocab_size));
    }
    const std::vector<SequenceSlice> slices(static_cast<size_t>(batch),
                                            SequenceSlice{tokens, position, blocks_, logit_rows});
    model_->Forward(slices,
                    absl::MakeSpan(logits_).subspan(
                        0, static_cast<size_t>(batch * logit_rows * model_->spec().vocab_size)));
  }

  const std::unique_ptr<Model> model_;
  std::vector<BlockId> blocks_;
  std::vector<float> logits_;
};

int Main(int argc, char** argv) {
  CLI::App app("Speed of the model, without scheduler or network.");
  std::string model_dir, isa = "auto", dtype = "bf16";
  int threads = 0, reps = 5;
  app.add_option("model", model_dir, "Model folder")->required();
  app.add_option("--isa", isa, "auto, portable, avx2, avx512 or amx");
  app.add_option("--dtype", dtype, "bf16 or f32")->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option("--threads", threads, "Threads; 0: all");
  app.add_option("--reps", reps, "Repetitions; medians are printed")->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);

  const auto spec = LoadModelSpec(model_dir);
  if (!spec.ok()) {
    std::fprintf(stderr, "%s\n", spec.status().ToString().c_str());
    return 1;
  }
  DeepseekLoadOptions options;
  options.model_dir = model_dir;
  options.dtype = dtype == "f32" ? DType::kF32 : DType::kBF16;
  options.isa = isa;
  options.num_threads = threads;
  const auto load_start = Clock::now();
  auto weights = LoadDeepseekWeights(*spec, options);
  if (!weights.ok()) {
    std::fprintf(stderr, "%s\n", weights.status().ToString().c_str());
    return 1;
  }
  threads = (*weights)->backend->num_threads();
  std::printf("%s, %d threads, loaded in %.2f s\n", (*weights)->backend->kernel_family().c_str(),
              threads, Seconds(Clock::now() - load_start));
  const int max_len = static_cast<int>(std::min<int64_t>(spec->max_position_embeddings, 8192));
  const int64_t num_blocks = (max_len + 63) / 64;
  auto kv = KvStore::Create(MakeKvLayout(*spec, options.dtype), num_blocks);
  if (!kv.ok()) {
    std::fprintf(stderr, "%s\n", kv.status().ToString().c_str());
    return 1;
  }
  Bench bench(CreateDeepseekModel(*std::move(weights), kv->get()), num_blocks);

  const auto report = [&](const char* what, double tokens, const auto& run) {
    std::vector<double> rates;
    run();
    for (int i = 0; i < reps; ++i) rates.push_back(tokens / run());
    std::printf("%-32s %10.0f tokens/s  (%.0f to %.0f)\n", what, Median(rates),
                *std::min_element(rates.begin(), rates.end()),
                *std::max_element(rates.begin(), rates.end()));
  };
  std::printf("memory read, 1 and %d threads: %.1f and %.1f GB/s\n", threads,
              ReadBandwidth(1) / 1e9, ReadBandwidth(threads) / 1e9);
  report("prefill 512", 512, [&] { return bench.Prefill(0, 512); });
  report("prefill 2048", 2048, [&] { return bench.Prefill(0, std::min(2048, max_len)); });
  report("decode, depth 64", 1, [&] { return bench.Decode(64, 1, 50); });
  report("decode, depth 1000", 1, [&] { return bench.Decode(1000, 1, 50); });
  bench.Prefill(0, max_len - 100);
  report("decode, depth max_len - 100", 1, [&] { return bench.Decode(max_len - 100, 1, 50); });
  report("decode, batch 8, depth 512", 8, [&] { return bench.Decode(512, 8, 20); });
  report("decode, batch 32, depth 512", 32, [&] { return bench.Decode(512, 32, 10); });
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
