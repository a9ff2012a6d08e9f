// Promise 1 over real models: the same request gives the same tokens and log-probabilities, bit for
// bit, whatever else is in the batch, however the prompt is cut, whether its beginning was cached,
// whether it was preempted, how many threads compute, and whether prefill and decode happen in one
// engine or two.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/runtime/engine_impl.h"
#include "tests/engine_control/engine_driver.h"

namespace sluice::testing {
namespace {

struct Case {
  const char* model;
  DType dtype;
  const char* isa;
  // Of the handoff test; the slower combinations do less.
  int num_handoffs;
  int max_prompt;
};

class EngineModelTest : public ::testing::TestWithParam<Case> {
 protected:
  static EngineOptions Options(int num_threads = 2) {
    EngineOptions options;
    options.model_dir = ModelDir(GetParam().model);
    options.dtype = GetParam().dtype;
    options.isa = GetParam().isa;
    options.num_threads = num_threads;
    options.num_kv_blocks = 256;
    options.scheduler.max_model_len = 1024;
    return options;
  }
};

TEST_P(EngineModelTest, SchedulingDoesNotShowInTheAnswers) {
  EngineOptions alone = Options(1);
  alone.scheduler.enable_prefix_cache = false;
  alone.scheduler.max_num_batched_tokens = 1024;
  std::unique_ptr<Engine> engine = LoadEngine(alone);
  const std::vector<SequenceInput> inputs =
      RandomRequests(11, 14, 300, 24, engine->spec().vocab_size);
  const Answers expected = RunAll(engine.get(), inputs, /*alone=*/true);
  ASSERT_EQ(expected.size(), inputs.size());

  {
    SCOPED_TRACE("together, in chunks of uneven size, with a prefix cache");
    EngineOptions options = Options();
    options.scheduler.max_num_batched_tokens = 77;
    options.scheduler.max_num_seqs = 9;
    options.scheduler.long_prompt_tokens = 100;
    engine = LoadEngine(options);
    EXPECT_EQ(Difference(RunAll(engine.get(), inputs), expected), "");
    // Again: now the prompts are cached, and other work is in the batch.
    const int64_t cached = engine->Load().blocks.cached;
    EXPECT_GT(cached, 0);
    EXPECT_EQ(Difference(RunAll(engine.get(), inputs), expected), "");
  }
  {
    SCOPED_TRACE("in a pool that is too small for all");
    EngineOptions options = Options();
    options.num_kv_blocks = 7;
    options.scheduler.max_model_len = 64 * 7;
    options.scheduler.max_num_seqs = 6;
    options.scheduler.max_num_batched_tokens = 200;
    options.scheduler.expected_output_tokens = 0;
    engine = LoadEngine(options);
    EXPECT_EQ(Difference(RunAll(engine.get(), inputs), expected), "");
    EXPECT_GT(static_cast<EngineImpl*>(engine.get())->scheduler().num_preemptions(), 0);
  }
}

TEST_P(EngineModelTest, TwoEnginesAnswerLikeOne) {
  std::unique_ptr<Engine> both = LoadEngine(Options());
  const std::vector<SequenceInput> inputs = RandomRequests(
      23, GetParam().num_handoffs, GetParam().max_prompt, 16, both->spec().vocab_size);
  const Answers expected = RunAll(both.get(), inputs);
  both.reset();

  EngineOptions prefill_options = Options();
  prefill_options.scheduler.max_num_batched_tokens = 150;
  prefill_options.num_kv_blocks = 40;
  EngineOptions decode_options = Options();
  decode_options.num_kv_blocks = 40;
  decode_options.scheduler.max_num_seqs = 7;
  decode_options.scheduler.expected_output_tokens = 0;
  const std::unique_ptr<Engine> prefill = LoadEngine(prefill_options);
  const std::unique_ptr<Engine> decode = LoadEngine(decode_options);
  HandoffStats stats;
  const Answers actual = RunDisaggregated(prefill.get(), decode.get(), inputs, 5, &stats);
  EXPECT_EQ(Difference(actual, expected), "");
  EXPECT_GT(stats.copied_blocks, 10);
  if (GetParam().max_prompt > 300) {
    EXPECT_GT(stats.cached_tokens, 0);
    EXPECT_GT(stats.abandoned, 0);
  }
}

// bf16 with this processor's best instructions is what runs in production.
INSTANTIATE_TEST_SUITE_P(All, EngineModelTest,
                         ::testing::Values(Case{"tiny-v3", DType::kBF16, "auto", 30, 700},
                                           Case{"tiny-v3", DType::kF32, "auto", 10, 300},
                                           Case{"tiny-v3", DType::kBF16, "portable", 10, 300},
                                           Case{"tiny-v2", DType::kBF16, "auto", 10, 300},
                                           Case{"deepseek-tiny", DType::kBF16, "auto", 30, 700}),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           std::string name = std::string(info.param.model) + "_" +
                                              DTypeName(info.param.dtype) + "_" + info.param.isa;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(EngineCreateTest, RefusesByName) {
  EngineOptions options;
  options.model_dir = ModelDir("no-such-model");
  EXPECT_EQ(Engine::Create(options).status().code(), absl::StatusCode::kNotFound);
  options.model_dir = ModelDir("tiny-v3");
  options.isa = "sparc";
  EXPECT_EQ(Engine::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.isa = "";
  options.scheduler.max_num_seqs = 0;
  EXPECT_NE(Engine::Create(options).status().message().find("max_num_seqs"), std::string::npos);
  options.scheduler = SchedulerOptions();
  options.sampleable_vocab_size = 1000;
  EXPECT_NE(Engine::Create(options).status().message().find("sampleable_vocab_size"),
            std::string::npos);
  options.sampleable_vocab_size = 0;
  options.scheduler.max_model_len = 1 << 20;
  EXPECT_NE(Engine::Create(options).status().message().find("max_model_len"), std::string::npos);
  options.scheduler.max_model_len = 1024;
  options.num_kv_blocks = 15;
  EXPECT_EQ(Engine::Create(options).status().code(), absl::StatusCode::kResourceExhausted);
  options.num_kv_blocks = 16;
  EXPECT_TRUE(Engine::Create(options).ok());
}

// An answer that goes on at another worker is drawn from the same ids, or not there.
TEST(EngineCreateTest, TheIdsThatMayBeSampledArePartOfTheFingerprint) {
  EngineOptions options;
  options.model_dir = ModelDir("tiny-v3");
  options.num_kv_blocks = 16;
  options.scheduler.max_model_len = 1024;
  const KvFingerprint all = LoadEngine(options)->fingerprint();
  const int64_t vocab_size = LoadModelSpec(options.model_dir)->vocab_size;
  options.sampleable_vocab_size = vocab_size;
  EXPECT_EQ(LoadEngine(options)->fingerprint().digest, all.digest);
  options.sampleable_vocab_size = vocab_size - 1;
  const KvFingerprint fewer = LoadEngine(options)->fingerprint();
  EXPECT_NE(fewer.digest, all.digest);
  // What the router says when it refuses the one beside the other.
  const std::string part = absl::StrCat(" sampleable_vocab_size=", vocab_size - 1, "\n");
  EXPECT_NE(fewer.text.find(part), std::string::npos) << fewer.text;
}

// A folder with nothing but a config: what cannot fit is refused before anything is read.
TEST(EngineCreateTest, RefusesWeightsThatDoNotFit) {
  const std::string folder = ::testing::TempDir() + "/weights_that_do_not_fit";
  std::filesystem::create_directories(folder);
  nlohmann::json config;
  std::ifstream(ModelDir("tiny-v3") + "/config.json") >> config;
  config["num_hidden_layers"] = 64;
  config["hidden_size"] = config["moe_intermediate_size"] = 1 << 16;  // 26 TB
  std::ofstream(folder + "/config.json") << config;
  EngineOptions options;
  options.model_dir = folder;
  const absl::Status status = Engine::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("the weights take"), std::string::npos) << status;
}

TEST(EngineCreateTest, SizesItselfFromFreeMemory) {
  EngineOptions options;
  options.model_dir = ModelDir("deepseek-tiny");
  double progress = 0;
  options.on_load_progress = [&progress](double value) { progress = value; };
  const std::unique_ptr<Engine> engine = LoadEngine(options);
  EXPECT_EQ(progress, 1);
  EXPECT_GE(engine->Load().blocks.total * kBlockTokens, engine->max_model_len());
  EXPECT_EQ(engine->max_model_len(), engine->spec().max_position_embeddings);
  EXPECT_LE(engine->Load().blocks.total * engine->layout().block_bytes(), int64_t{2} << 30);
  EXPECT_EQ(engine->fingerprint().digest.size(), 32u);
}

}  // namespace
}  // namespace sluice::testing
