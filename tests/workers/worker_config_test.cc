#include "services/worker_runtime/worker_config.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace sluice::worker {
namespace {

absl::Status Load(const std::vector<std::string>& arguments, WorkerConfig* config) {
  ConfigSchema schema("sluice-decode-worker", "test");
  config->Register(&schema, {"decode", "both"});
  const absl::StatusOr<ConfigAction> action = schema.LoadFrom(arguments, {});
  if (!action.ok()) return action.status();
  return config->Finish();
}

TEST(WorkerConfig, DefaultsAndDerivedValues) {
  WorkerConfig config;
  ASSERT_TRUE(Load({"models/deepseek-tiny/"}, &config).ok());
  EXPECT_EQ(config.role, "decode");
  EXPECT_EQ(config.model, "models/deepseek-tiny/");
  EXPECT_EQ(config.served_model_name, "deepseek-tiny");
  EXPECT_EQ(config.transfer.window_bytes, TransferOptions().window_bytes);
  EXPECT_EQ(config.MakeEngineOptions().dtype, DType::kBF16);
}

TEST(WorkerConfig, FlagsReachTheirOptions) {
  WorkerConfig config;
  const absl::Status loaded =
      Load({"--model=/m", "--role", "both", "--routers", "a:1,dns:b:2", "--dtype", "f32",
            "--kv-cache", "1GiB", "--num-kv-blocks", "9", "--scheduler.max-num-seqs", "3",
            "--transfer.window", "2MiB", "--transfer.lease", "3s", "--threads", "2"},
           &config);
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_EQ(config.role, "both");
  EXPECT_EQ(config.routers, (std::vector<std::string>{"a:1", "dns:b:2"}));
  EXPECT_EQ(config.transfer.window_bytes, 2U << 20);
  EXPECT_EQ(config.transfer.lease, absl::Seconds(3));
  const EngineOptions engine = config.MakeEngineOptions();
  EXPECT_EQ(engine.dtype, DType::kF32);
  EXPECT_EQ(engine.kv_cache_bytes, 1ULL << 30);
  EXPECT_EQ(engine.num_kv_blocks, 9);
  EXPECT_EQ(engine.num_threads, 2);
  EXPECT_EQ(engine.scheduler.max_num_seqs, 3);
}

struct Bad {
  std::vector<std::string> arguments;
  std::string named;
};
class WorkerConfigRefusal : public ::testing::TestWithParam<Bad> {};

TEST_P(WorkerConfigRefusal, NamesTheKey) {
  WorkerConfig config;
  const absl::Status loaded = Load(GetParam().arguments, &config);
  EXPECT_EQ(loaded.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(loaded.message().find(GetParam().named), std::string::npos) << loaded;
}

INSTANTIATE_TEST_SUITE_P(
    All, WorkerConfigRefusal,
    ::testing::Values(
        Bad{{}, "model"}, Bad{{"m", "--role", "prefill"}, "role"},
        Bad{{"m", "--routers", "nohost"}, "routers"}, Bad{{"m", "--routers", "h:99999"}, "routers"},
        Bad{{"m", "--dtype", "fp4"}, "dtype"},
        Bad{{"m", "--transfer.lease", "1ms"}, "transfer.lease"},
        Bad{{"m", "--transfer.peer-timeout", "100ms"}, "transfer.peer_timeout"},
        Bad{{"m", "--transfer.window", "1KiB"}, "transfer.window"},
        Bad{{"m", "--scheduler.max-num-batched-tokens", "8"}, "scheduler.max_num_batched_tokens"},
        Bad{{"m", "--worker-id", "w\xFF"}, "worker_id"},
        Bad{{"m", "--served-model-name", "m\xC3"}, "served_model_name"},
        Bad{{"models/m\xFF"}, "served_model_name"}, Bad{{"m", "--kv_blocks", "8"}, "kv"}));

}  // namespace
}  // namespace sluice::worker
