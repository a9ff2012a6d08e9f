// Speed of the model itself, without scheduler or network: prefill and decode at several depths,
// each beside the memory bandwidth and clock of the same seconds, and where the time goes. The
// engine's own part of a step (plan, sample, report) is measured around a model that does nothing.
//
//   engine_bench models/deepseek-tiny [--isa auto] [--dtype bf16|f32] [--threads 2] [--reps 5]
//                [--depths 0,4000] [--batches 8,32] [--stages]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "bench/machine_probe.h"
#include "bench/timed_backend.h"
#include "common/check.h"
#include "engine/model/deepseek_model.h"
#include "engine/runtime/engine_impl.h"

namespace sluice {
namespace {

using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  // Blocks of each sequence of a batch: a depth of 512, and the steps.
  static constexpr int kBatchBlocks = 9;
  static int64_t NumBlocks(int64_t num_blocks, int max_batch) {
    return num_blocks + int64_t{kBatchBlocks} * max_batch;
  }

  // `timer` belongs to the model's weights. The first `num_blocks` serve a lone sequence.
  Bench(std::unique_ptr<Model> model, TimedBackend* timer, int64_t num_blocks, int max_batch)
      : model_(std::move(model)), timer_(timer) {
    for (int64_t i = 0; i < num_blocks; ++i) blocks_.push_back(BlockId(static_cast<int32_t>(i)));
    for (int64_t i = 0; i < max_batch * kBatchBlocks; ++i) {
      batch_blocks_.push_back(BlockId(static_cast<int32_t>(num_blocks + i)));
    }
    logits_.resize(static_cast<size_t>(max_batch * model_->spec().vocab_size));
  }

  // Seconds of a prompt of `count` tokens after `depth` others, in chunks of 512.
  double Prefill(int depth, int count) {
    const auto start = SteadyClock::now();
    for (int done = 0; done < count; done += 512) {
      const int chunk = std::min(512, count - done);
      Run(depth + done, chunk, done + chunk == count ? 1 : 0, 1);
    }
    return SecondsSince(start);
  }
  // Seconds of one decode step of `batch` sequences at `depth`.
  double Decode(int depth, int batch, int steps) {
    const auto start = SteadyClock::now();
    for (int i = 0; i < steps; ++i) Run(depth + i, 1, 1, batch);
    return SecondsSince(start) / steps;
  }

  // Shares of the stages since Reset, of `seconds` in all.
  void PrintStages(double seconds) const {
    double kernels = 0;
    for (int stage = 0; stage < TimedBackend::kNumStages; ++stage) {
      const double part = timer_->seconds()[static_cast<size_t>(stage)];
      kernels += part;
      std::printf("    %-22s %5.1f %%\n", TimedBackend::StageName(stage), part / seconds * 100);
    }
    std::printf("    %-22s %5.1f %%\n", "outside the kernels", (1 - kernels / seconds) * 100);
  }
  void ResetStages() { timer_->Reset(); }

 private:
  // Sequences of a batch have their own tokens, or they would all choose the same experts.
  void Run(int position, int count, int logit_rows, int batch) {
    tokens_.clear();
    for (int i = 0; i < count * batch; ++i) {
      tokens_.push_back(static_cast<TokenId>((position + i + 1) * int64_t{7919} * 31 %
                                             model_->spec().vocab_size));
    }
    slices_.clear();
    for (int s = 0; s < batch; ++s) {
      const auto table = batch == 1
                             ? absl::MakeConstSpan(blocks_)
                             : absl::MakeConstSpan(batch_blocks_)
                                   .subspan(static_cast<size_t>(s) * kBatchBlocks, kBatchBlocks);
      slices_.push_back(
          {absl::MakeConstSpan(tokens_).subspan(static_cast<size_t>(s) * static_cast<size_t>(count),
                                                static_cast<size_t>(count)),
           position, table, logit_rows});
    }
    model_->Forward(slices_,
                    absl::MakeSpan(logits_).subspan(
                        0, static_cast<size_t>(batch * logit_rows * model_->spec().vocab_size)));
  }

  const std::unique_ptr<Model> model_;
  TimedBackend* const timer_;
  std::vector<BlockId> blocks_;
  std::vector<BlockId> batch_blocks_;
  std::vector<TokenId> tokens_;
  std::vector<SequenceSlice> slices_;
  std::vector<float> logits_;
};

// Takes no time, so that a step of the engine around it is all overhead.
class InstantModel final : public Model {
 public:
  InstantModel(const ModelSpec& spec, int num_threads) : spec_(spec), pool_(num_threads) {}
  // The engine keeps one buffer for logits, so they need writing only while it is new.
  void Forward(absl::Span<const SequenceSlice> /*slices*/, absl::Span<float> logits) override {
    const size_t vocab_size = static_cast<size_t>(spec_.vocab_size);
    for (; num_filled_ < logits.size(); ++num_filled_) {
      // One token far ahead, the others spread out as those of a trained model are.
      const size_t token = num_filled_ % vocab_size;
      logits[num_filled_] =
          token == 5 ? 12.0f : static_cast<float>(token * 2654435761u >> 16 & 1023) / 64.0f - 8.0f;
    }
  }
  int num_workers() const override { return pool_.num_threads(); }
  void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn) override {
    pool_.ParallelFor(num_tasks, fn);
  }
  const ModelSpec& spec() const override { return spec_; }

 private:
  const ModelSpec spec_;
  ThreadPool pool_;
  size_t num_filled_ = 0;
};

// Seconds of one step of the engine with `batch` decodes, the model's time excluded: plan, sample
// from `vocab_size` logits each on `num_threads`, report.
double EngineStepSeconds(ModelSpec spec, int64_t vocab_size, const SamplingParams& sampling,
                         int batch, int num_threads, int reps) {
  constexpr int kSteps = 200, kPrompt = 100;
  spec.vocab_size = vocab_size;
  EngineParts parts;
  const KvLayout layout = MakeKvLayout(spec, DType::kBF16);
  auto kv_store = KvStore::Create(layout, batch * 8);
  SLUICE_CHECK(kv_store.ok());
  parts.kv_store = *std::move(kv_store);
  parts.model = std::make_unique<InstantModel>(spec, num_threads);
  parts.scheduler.max_model_len = 512;
  parts.scheduler.max_num_seqs = batch;
  EngineImpl engine(std::move(parts));
  uint64_t id = 0;
  std::vector<double> seconds;
  for (int rep = 0; rep < reps; ++rep) {
    for (int i = 0; i < batch; ++i) {
      SequenceInput input;
      std::memcpy(input.key.request.bytes.data(), &++id, sizeof(id));
      input.key.attempt = Attempt(1);
      input.tokens.assign(kPrompt, static_cast<TokenId>(1 + i % 50));
      input.sampling = sampling;
      input.sampling.max_tokens = kSteps + 50;
      SLUICE_CHECK(engine.AddRun(std::move(input)).ok());
    }
    while (engine.Step().num_prefill_tokens > 0) {
    }
    const auto start = SteadyClock::now();
    for (int step = 0; step < kSteps; ++step) {
      SLUICE_CHECK(engine.Step().tokens.size() == static_cast<size_t>(batch));
    }
    seconds.push_back(SecondsSince(start) / kSteps);
    while (engine.HasWork()) engine.Step();
  }
  return *std::min_element(seconds.begin(), seconds.end());
}

int Main(int argc, char** argv) {
  CLI::App app("Speed of the model, without scheduler or network.");
  std::string model_dir, isa = "auto", dtype = "bf16";
  int threads = 0, reps = 5;
  bool stages = false;
  std::vector<int> depths = {0, 1000, 4000}, batches = {8, 32}, prompts = {512, 2048};
  app.add_option("model", model_dir, "Model folder")->required();
  app.add_option("--isa", isa, "auto, portable, avx2, avx512 or amx");
  app.add_option("--dtype", dtype, "bf16 or f32")->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option("--threads", threads, "Threads; 0: all");
  app.add_option("--reps", reps, "Repetitions; medians are printed")->check(CLI::Range(1, 1000));
  app.add_option("--prompts", prompts, "Prompt lengths")->delimiter(',');
  app.add_option("--depths", depths, "Depths of a single decode")->delimiter(',');
  app.add_option("--batches", batches, "Sequences decoded together, at depth 512")->delimiter(',');
  app.add_flag("--stages", stages, "Also print where the time goes");
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
  const auto load_start = SteadyClock::now();
  auto weights = LoadDeepseekWeights(*spec, options);
  if (!weights.ok()) {
    std::fprintf(stderr, "%s\n", weights.status().ToString().c_str());
    return 1;
  }
  threads = (*weights)->backend->num_threads();
  std::printf("%s, %d threads, loaded in %.2f s\n", (*weights)->backend->kernel_family().c_str(),
              threads, SecondsSince(load_start));
  auto timed = std::make_unique<TimedBackend>(std::move((*weights)->backend));
  TimedBackend* const timer = timed.get();
  (*weights)->backend = std::move(timed);

  const int max_len = static_cast<int>(std::min<int64_t>(spec->max_position_embeddings, 8192));
  const int64_t num_blocks = (max_len + 63) / 64;
  const int max_batch = batches.empty() ? 0 : *std::max_element(batches.begin(), batches.end());
  auto kv =
      KvStore::Create(MakeKvLayout(*spec, options.dtype), Bench::NumBlocks(num_blocks, max_batch));
  if (!kv.ok()) {
    std::fprintf(stderr, "%s\n", kv.status().ToString().c_str());
    return 1;
  }
  Bench bench(CreateDeepseekModel(*std::move(weights), kv->get()), timer, num_blocks,
              std::max(1, max_batch));

  ThreadPool pool(threads);
  Buffer probed(size_t{512} << 20);
  MachineProbe probe(&pool, {Region(probed.as<uint8_t>(), probed.size_bytes())});
  const auto report = [&](const std::string& what, double tokens, const auto& run) {
    std::vector<double> rates;
    double bandwidth = 0, clock = 0, seconds = 0;
    run();
    bench.ResetStages();
    for (int i = 0; i < reps; ++i) {
      bandwidth = std::max(bandwidth, probe.ReadBandwidth());
      clock = std::max(clock, MachineProbe::ClockHz());
      const auto start = SteadyClock::now();
      rates.push_back(tokens / run());
      seconds += SecondsSince(start);
    }
    std::printf("%-28s %9.1f tokens/s  (%.1f to %.1f)   memory %.1f GB/s, %.2f GHz\n", what.c_str(),
                Median(rates), *std::min_element(rates.begin(), rates.end()),
                *std::max_element(rates.begin(), rates.end()), bandwidth / 1e9, clock / 1e9);
    if (stages) bench.PrintStages(seconds);
    std::fflush(stdout);
  };
  for (const int prompt : prompts) {
    if (prompt > max_len) continue;
    report("prefill " + std::to_string(prompt), prompt, [&] { return bench.Prefill(0, prompt); });
  }
  // About a fifth of a second of decoding a repetition, but never beyond the last position.
  const auto steps_for = [](double seconds) {
    return std::clamp(static_cast<int>(0.2 / seconds), 2, 50);
  };
  const int steps = steps_for(bench.Decode(0, 1, 2));
  int filled = 0;
  for (const int depth : depths) {
    if (depth + steps > max_len) continue;
    if (depth > filled) bench.Prefill(filled / 64 * 64, depth - filled / 64 * 64);
    filled = std::max(filled, depth);
    report("decode, depth " + std::to_string(depth), 1,
           [&] { return bench.Decode(depth, 1, steps); });
  }
  if (512 + steps <= max_len) {
    for (const int batch : batches) {
      const int batch_steps = steps_for(bench.Decode(512, batch, 2));
      report("decode, " + std::to_string(batch) + " sequences", batch,
             [&] { return bench.Decode(512, batch, batch_steps); });
    }
  }
  for (const int batch : {1, 32}) {
    constexpr int64_t kSmallVocabulary = 64;
    SamplingParams greedy, drawn;
    greedy.temperature = 0;
    drawn.temperature = 0.6f;
    drawn.top_p = 0.95f;
    const auto step_us = [&](int64_t vocab_size, const SamplingParams& sampling) {
      return 1e6 * EngineStepSeconds(*spec, vocab_size, sampling, batch, threads, reps);
    };
    std::printf(
        "engine step around the model, %2d sequences: %.1f us, with sampling %.1f us greedy, "
        "%.1f us at temperature 0.6, top_p 0.95\n",
        batch, step_us(kSmallVocabulary, greedy), step_us(spec->vocab_size, greedy),
        step_us(spec->vocab_size, drawn));
  }
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
