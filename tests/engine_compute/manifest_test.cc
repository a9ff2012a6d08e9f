// A model folder held against its manifest: what was damaged, lost, added or exchanged is refused
// by name, and an engine that answers wrongly does not come up.
#include "engine/weights/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "engine/runtime/answer_check.h"
#include "engine/runtime/engine.h"
#include "engine/weights/checkpoint_digest.h"
#include "tests/engine_compute/model_harness.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kSecondShard[] = "model-00002-of-000003.safetensors";

class ManifestTest : public testing::Test {
 protected:
  ManifestTest()
      : dir_(fs::path(testing::TempDir()) /
             absl::StrCat("manifest_", getpid(), "_",
                          testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(dir_);
    fs::copy(GoldenDir("dev-v3"), dir_);
    fs::permissions(dir_, fs::perms::owner_all);
    for (const auto& entry : fs::directory_iterator(dir_)) {
      fs::permissions(entry.path(), fs::perms::owner_read | fs::perms::owner_write);
    }
  }
  ~ManifestTest() override { fs::remove_all(dir_); }

  EngineOptions Options(DType dtype) const {
    EngineOptions options;
    options.model_dir = dir_.string();
    options.dtype = dtype;
    options.num_threads = 2;
    options.num_kv_blocks = 4;
    options.scheduler.max_model_len = 128;
    return options;
  }
  absl::Status Load(DType dtype = DType::kF32) const {
    return Engine::Create(Options(dtype)).status();
  }

  // As `sluice inspect --write-manifest`, with f32 weights.
  void WriteWithGolden() {
    EngineOptions options = Options(DType::kF32);
    options.verify_weights = false;
    options.check_answers = false;
    const auto engine = Engine::Create(options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    auto golden =
        MakeGoldenAnswer(engine->get(), SyntheticGoldenPrompt((*engine)->spec().vocab_size, 20));
    ASSERT_TRUE(golden.ok()) << golden.status();
    golden->tolerance_bf16 = 0.5;  // random weights: the precisions are far apart
    const auto checkpoint = Checkpoint::Open(dir_.string());
    ASSERT_TRUE(checkpoint.ok());
    double progress = 0;
    auto manifest = DigestCheckpoint(**checkpoint, 2, [&](double now) { progress = now; });
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    EXPECT_GT(progress, 0.99);
    manifest->has_golden = true;
    manifest->golden = *golden;
    ASSERT_TRUE(WriteManifest(dir_.string(), *manifest).ok());
  }

  void FlipBit(const std::string& name, uint64_t offset) {
    std::fstream file(dir_ / name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(byte);
    ASSERT_TRUE(file.good());
  }
  std::string Read(const std::string& name) const {
    std::ifstream file(dir_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(dir_ / name, std::ios::binary) << bytes;
  }
  // Changes the manifest's golden answer.
  void EditGolden(const std::function<void(GoldenAnswer*)>& edit) {
    auto manifest = ReadManifest(dir_.string());
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    edit(&manifest->golden);
    ASSERT_TRUE(WriteManifest(dir_.string(), *manifest).ok());
  }

  static void ExpectRefused(const absl::Status& status, absl::StatusCode code,
                            const std::vector<std::string>& parts) {
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }

  const fs::path dir_;
};

TEST_F(ManifestTest, WithoutOneTheModelLoads) {
  EXPECT_EQ(ReadManifest(dir_.string()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Load(DType::kF32).ok());
  EXPECT_TRUE(Load(DType::kBF16).ok());
}

TEST_F(ManifestTest, OneThatCannotBeReadIsNotAbsent) {
  fs::create_symlink(kManifestFile, dir_ / kManifestFile);  // to itself
  ExpectRefused(ReadManifest(dir_.string()).status(), absl::StatusCode::kUnavailable,
                {kManifestFile});
  ExpectRefused(Load(DType::kF32), absl::StatusCode::kUnavailable, {kManifestFile});
}

TEST_F(ManifestTest, RoundTripAndBothPrecisionsLoad) {
  WriteWithGolden();
  const auto manifest = ReadManifest(dir_.string());
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->shards.size(), 3u);
  EXPECT_EQ(manifest->golden.prompt.size(), 20u);
  EXPECT_EQ(manifest->golden.output.size(), 16u);
  EXPECT_TRUE(Load(DType::kF32).ok()) << Load(DType::kF32);
  EXPECT_TRUE(Load(DType::kBF16).ok()) << Load(DType::kBF16);
  // Nothing but the manifest was added to the folder.
  for (const auto& entry : fs::directory_iterator(dir_)) {
    EXPECT_TRUE(fs::exists(fs::path(GoldenDir("dev-v3")) / entry.path().filename()) ||
                entry.path().filename() == kManifestFile)
        << entry.path();
  }
}

TEST_F(ManifestTest, AFlippedBitNamesShardAndTensor) {
  WriteWithGolden();
  const auto checkpoint = Checkpoint::Open(dir_.string());
  ASSERT_TRUE(checkpoint.ok());
  const SafetensorsFile& shard = *(*checkpoint)->files()[1];
  const uint64_t data_begin = 8 + shard.header().size();
  const auto& tensors = shard.tensors();
  for (const TensorInfo* tensor :
       {&tensors.front(), &tensors[tensors.size() / 2], &tensors.back()}) {
    for (const uint64_t offset : {tensor->begin, tensor->end - 1}) {
      FlipBit(kSecondShard, data_begin + offset);
      ExpectRefused(Load(), absl::StatusCode::kFailedPrecondition,
                    {kSecondShard, absl::StrCat("'", tensor->name, "'")});
      FlipBit(kSecondShard, data_begin + offset);
    }
  }
  EXPECT_TRUE(Load().ok());
}

TEST_F(ManifestTest, VerificationCanBeSwitchedOff) {
  WriteWithGolden();
  const std::string shard = Read(kSecondShard);
  FlipBit(kSecondShard, shard.size() - 2);  // the low bits of one number
  EngineOptions options = Options(DType::kF32);
  options.verify_weights = false;
  EXPECT_TRUE(Engine::Create(options).ok()) << Engine::Create(options).status();
}

TEST_F(ManifestTest, FilesThatAreLostAddedCutOrExchanged) {
  WriteWithGolden();
  const std::string shard = Read(kSecondShard);
  const auto refused = absl::StatusCode::kFailedPrecondition;

  Write(kSecondShard, shard.substr(0, shard.size() - 1));
  ExpectRefused(Load(), refused, {kSecondShard, "bytes instead of"});
  Write(kSecondShard, shard + '\0');
  ExpectRefused(Load(), refused, {kSecondShard, "bytes instead of"});
  fs::remove(dir_ / kSecondShard);
  ExpectRefused(Load(), refused, {kSecondShard, "missing"});
  Write(kSecondShard, shard);
  EXPECT_TRUE(Load().ok());

  Write("model-00004-of-000003.safetensors", shard);
  ExpectRefused(Load(), refused, {"model-00004-of-000003.safetensors", "surplus"});
  fs::remove(dir_ / "model-00004-of-000003.safetensors");

  std::string config = Read("config.json");
  Write("config.json", config + " ");
  ExpectRefused(Load(), refused, {"config.json"});
  config[config.find('\n')] = ' ';
  Write("config.json", config);
  ExpectRefused(Load(), refused, {"config.json", "differs"});
}

TEST_F(ManifestTest, AnotherChatTemplateIsRefused) {
  Write("chat_template.jinja", "{{ messages[0].content }}");
  WriteWithGolden();
  EXPECT_TRUE(Load().ok()) << Load();
  Write("chat_template.jinja", "{{ messages[1].content }}");
  ExpectRefused(Load(), absl::StatusCode::kFailedPrecondition, {"chat_template.jinja", "differs"});
}

TEST_F(ManifestTest, FilesThatLoadingReadsAreNotAddedLater) {
  const char* const optional[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                                  "generation_config.json"};
  for (const char* name : optional) fs::remove(dir_ / name);
  WriteWithGolden();
  EXPECT_TRUE(Load().ok()) << Load();
  for (const char* name : optional) {
    Write(name, "{}");
    ExpectRefused(Load(), absl::StatusCode::kFailedPrecondition, {name, "surplus"});
    fs::remove(dir_ / name);
    fs::create_symlink(name, dir_ / name);  // to itself: there, but unreadable
    ExpectRefused(Load(), absl::StatusCode::kFailedPrecondition, {name, "surplus"});
    fs::remove(dir_ / name);
  }
  Write("README.md", "what loading does not read may change");
  EXPECT_TRUE(Load().ok()) << Load();
}

TEST_F(ManifestTest, AHeaderThatStillParsesIsRefused) {
  WriteWithGolden();
  std::string shard = Read(kSecondShard);
  const std::string format = R"("format":"pt")";  // which loading does not read
  ASSERT_NE(shard.find(format), std::string::npos);
  shard.replace(shard.find(format), format.size(), R"("format":"PT")");
  Write(kSecondShard, shard);
  ExpectRefused(Load(), absl::StatusCode::kFailedPrecondition, {kSecondShard, "header"});
}

TEST_F(ManifestTest, AWrongAnswerDoesNotComeUp) {
  WriteWithGolden();
  EditGolden([](GoldenAnswer* golden) { golden->logprobs[7] += 0.01; });
  ExpectRefused(Load(DType::kF32), absl::StatusCode::kDataLoss,
                {"golden prompt", "token 7", "log-probability"});
  EXPECT_TRUE(Load(DType::kBF16).ok()) << "within its tolerance";
  EditGolden([](GoldenAnswer* golden) {
    golden->logprobs[7] -= 0.01;
    golden->output[9] ^= 1;
    golden->margins[9] = 3;
  });
  ExpectRefused(Load(DType::kF32), absl::StatusCode::kDataLoss, {"token 9", "instead of"});
  // A near tie may go the other way.
  EditGolden([](GoldenAnswer* golden) { golden->margins[9] = 1e-4; });
  EXPECT_TRUE(Load(DType::kF32).ok());
}

std::string Nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

TEST_F(ManifestTest, DamagedManifestsAreRefusedByField) {
  WriteWithGolden();
  const std::string good = Read(kManifestFile);
  const auto replaced = [&good](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const struct {
    std::string text;
    std::string reason;
  } cases[] = {
      {"", "parse error"},
      {good.substr(0, good.size() / 2), "parse error"},
      {"[]", "sluice-manifest.json"},
      {"{}", "format"},
      {absl::StrCat("{\"format\":", Nested(500'000), "}"), "levels"},
      {replaced("\"format\": 1", "\"format\": 2"), "this program knows 1"},
      {replaced("\"shards\"", "\"shard\""), "shards"},
      {replaced("\"config.json\"", "\"../config.json\""), "not a plain file name"},
      {replaced("\"sha256\": \"", "\"sha256\": \"X"), "hex digits"},
      {replaced("\"margins\": [", "\"margins\": [1, "), "do not fit together"},
      {replaced(kSecondShard, "model-00001-of-000003.safetensors"), "appears twice"},
  };
  for (const auto& c : cases) {
    Write(kManifestFile, c.text);
    ExpectRefused(Load(), absl::StatusCode::kInvalidArgument, {kManifestFile, c.reason});
  }
}

TEST_F(ManifestTest, WeightsThatAreNotNumbersFailTheSelfCheck) {
  // No manifest: the engine must notice by itself. All of the final norm becomes NaN.
  const auto checkpoint = Checkpoint::Open(dir_.string());
  ASSERT_TRUE(checkpoint.ok());
  const TensorView* norm = (*checkpoint)->Find("model.norm.weight");
  ASSERT_NE(norm, nullptr);
  const std::string name = fs::path(norm->file->path()).filename().string();
  std::string shard = Read(name);
  const uint64_t begin = 8 + norm->file->header().size() + norm->info->begin;
  for (uint64_t i = begin; i < begin + (norm->info->end - norm->info->begin); ++i) {
    shard[i] = static_cast<char>(0xff);
  }
  Write(name, shard);
  ExpectRefused(Load(DType::kF32), absl::StatusCode::kDataLoss, {"self-check"});
  ExpectRefused(Load(DType::kBF16), absl::StatusCode::kDataLoss, {"self-check"});
}

// Another precision may prefer another token early in the answer: then the margin tells how far.
TEST_F(ManifestTest, AnAnswerThatGoesAnotherWayIsMeasuredByTheMargin) {
  auto engine = Engine::Create(Options(DType::kBF16));
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto golden =
      MakeGoldenAnswer(engine->get(), SyntheticGoldenPrompt((*engine)->spec().vocab_size, 20));
  ASSERT_TRUE(golden.ok()) << golden.status();
  EXPECT_EQ(*LargestDeviation(engine->get(), *golden), 0);
  golden->output[1] ^= 1;
  golden->margins[1] = 0.3;
  EXPECT_DOUBLE_EQ(*LargestDeviation(engine->get(), *golden), 0.15);
  golden->tolerance_bf16 = 0.14;
  EXPECT_FALSE(CheckGoldenAnswer(engine->get(), *golden).ok());
  golden->tolerance_bf16 = 4 * 0.15;
  EXPECT_TRUE(CheckGoldenAnswer(engine->get(), *golden).ok());
}

TEST_F(ManifestTest, TheCheckLeavesNothingBehind) {
  for (const bool with_golden : {false, true}) {
    if (with_golden) WriteWithGolden();
    auto engine = Engine::Create(Options(DType::kF32));
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ((*engine)->Load().blocks.free, 4);
    EXPECT_TRUE((*engine)->Holders().empty());
    EXPECT_FALSE((*engine)->HasWork());
  }
}

TEST_F(ManifestTest, EnginesTooSmallForTheQuestionStillLoad) {
  WriteWithGolden();
  for (const int max_model_len : {1, 2, 3, 21, 30}) {
    EngineOptions options = Options(DType::kF32);
    options.num_kv_blocks = 1;
    options.scheduler.max_model_len = max_model_len;
    options.scheduler.max_num_seqs = 1;
    options.scheduler.max_num_waiting = 1;
    options.scheduler.max_num_batched_tokens = 1;
    EXPECT_TRUE(Engine::Create(options).ok()) << max_model_len << Engine::Create(options).status();
  }
}

TEST(ShippedManifest, FitsTheModelWeShip) {
  const auto manifest = ReadManifest(TinyModelDir());
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_TRUE(manifest->has_golden);
  EXPECT_TRUE(CheckFilesAgainstManifest(TinyModelDir(), *manifest).ok());
}

}  // namespace
}  // namespace sluice
