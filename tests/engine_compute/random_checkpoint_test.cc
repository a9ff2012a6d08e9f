// Random checkpoints: whole, loadable, finite, and the same bytes for the same seed however many
// threads and shards wrote them.
#include "engine/weights/random_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/weights/checkpoint.h"
#include "engine/weights/deepseek_tensors.h"
#include "tests/engine_compute/model_harness.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

class RandomCheckpointTest : public testing::Test {
 protected:
  RandomCheckpointTest()
      : root_(fs::path(testing::TempDir()) /
              absl::StrCat("random_checkpoint_", getpid(), "_",
                           testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(root_);
  }
  ~RandomCheckpointTest() override { fs::remove_all(root_); }

  std::string Dir(const std::string& name) {
    fs::create_directories(root_ / name);
    return (root_ / name).string();
  }
  static ModelSpec Spec(const std::string& checkpoint) {
    const auto spec = LoadModelSpec(GoldenDir(checkpoint));
    EXPECT_TRUE(spec.ok()) << spec.status();
    return *spec;
  }

  const fs::path root_;
};

TEST_F(RandomCheckpointTest, SameBytesForAnyThreadsAndShards) {
  const ModelSpec spec = Spec("dev-v3");
  const std::string one = Dir("one"), many = Dir("many"), other = Dir("other");
  ASSERT_TRUE(WriteRandomCheckpoint(spec, {.dir = one}).ok());
  double progress = 0;
  ASSERT_TRUE(WriteRandomCheckpoint(spec, {.dir = many,
                                           .num_threads = 3,
                                           .max_shard_bytes = uint64_t{1} << 20,
                                           .on_progress = [&](double p) { progress = p; }})
                  .ok());
  ASSERT_TRUE(WriteRandomCheckpoint(spec, {.dir = other, .seed = 2}).ok());
  EXPECT_GT(progress, 0.99);
  const auto a = Checkpoint::Open(one), b = Checkpoint::Open(many), c = Checkpoint::Open(other);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok()) << a.status() << b.status() << c.status();
  EXPECT_EQ((*a)->files().size(), 1u);
  EXPECT_GT((*b)->files().size(), 1u);
  bool seeds_differ = false;
  uint64_t bytes = 0;
  for (const TensorView& view : (*a)->List()) {
    const TensorView* twin = (*b)->Find(view.info->name);
    ASSERT_NE(twin, nullptr) << view.info->name;
    const size_t size = view.info->end - view.info->begin;
    bytes += size;
    ASSERT_EQ(twin->info->end - twin->info->begin, size);
    EXPECT_EQ(std::memcmp(view.data, twin->data, size), 0) << view.info->name;
    const TensorView* stranger = (*c)->Find(view.info->name);
    seeds_differ = seeds_differ || std::memcmp(view.data, stranger->data, size) != 0;
  }
  EXPECT_TRUE(seeds_differ);
  EXPECT_EQ(bytes, RandomCheckpointBytes(spec));
}

TEST_F(RandomCheckpointTest, LoadsAndGivesFiniteLogitsThatDiffer) {
  for (const char* name : {"dev-v3", "tiny-v2lite"}) {
    SCOPED_TRACE(name);
    const std::string dir = Dir(name);
    ASSERT_TRUE(WriteRandomCheckpoint(Spec(name), {.dir = dir, .num_threads = 2}).ok());
    fs::copy_file(fs::path(GoldenDir(name)) / "config.json", fs::path(dir) / "config.json");
    LoadedModel loaded = LoadModelForTest(dir, DType::kBF16, "auto", 2, 4);
    ASSERT_NE(loaded.model, nullptr);
    TestSequence sequence = MakeSequence({1, 2, 3, 4, 5, 6, 7, 8}, 8);
    for (const auto& row : RunAllLogits(loaded, sequence)) {
      float low = row[0], high = row[0];
      for (const float logit : row) {
        ASSERT_TRUE(std::isfinite(logit));
        low = std::min(low, logit);
        high = std::max(high, logit);
      }
      EXPECT_GT(high - low, 0.5f);
      EXPECT_LT(high - low, 100.0f);
    }
  }
}

TEST_F(RandomCheckpointTest, Refusals) {
  ModelSpec spec = Spec("dev-v3");
  const std::string dir = Dir("twice");
  ASSERT_TRUE(WriteRandomCheckpoint(spec, {.dir = dir}).ok());
  EXPECT_FALSE(WriteRandomCheckpoint(spec, {.dir = dir}).ok()) << "overwrote a checkpoint";
  EXPECT_EQ(WriteRandomCheckpoint(spec, {.dir = (root_ / "nowhere").string()}).code(),
            absl::StatusCode::kNotFound);
  ModelSpec huge = spec;
  huge.vocab_size = int64_t{1} << 40;
  EXPECT_EQ(WriteRandomCheckpoint(huge, {.dir = Dir("huge")}).code(),
            absl::StatusCode::kResourceExhausted);
  spec.quantization = "fp8";
  EXPECT_EQ(WriteRandomCheckpoint(spec, {.dir = Dir("fp8")}).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sluice
